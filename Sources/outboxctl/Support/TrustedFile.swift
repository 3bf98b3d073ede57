import Foundation

/// A file whose words this process obeys or whose secrets it uses: only of ours or of root's
/// making. In a folder of somebody else, anything may lie under any name.
enum TrustedFile {
    /// Who else may do what with it.
    enum Privacy {
        /// Others may read it, but not write.
        case readable
        /// Nobody else may do anything.
        case secret
    }

    /// Reads the file; nil when there is none.
    ///
    /// Throws a `SettingError` that names the file, what is wrong with it and what to do.
    ///
    /// - Parameter what: what the file is, as the beginning of a sentence.
    static func read(_ path: String, _ what: String, _ privacy: Privacy) throws -> Data? {
        // A link is somebody's choice of a file, too.
        var link = stat()
        if lstat(path, &link) == 0, link.st_uid != geteuid(), link.st_uid != 0 {
            throw SettingError(
                description:
                    "\(what) \(path) belongs to another user (\(link.st_uid)) and is not obeyed; remove it, or run in a folder of your own"
            )
        }
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        if descriptor < 0, errno == ENOENT || errno == ENOTDIR { return nil }
        guard descriptor >= 0 else {
            throw SettingError(description: "\(what) \(path) cannot be read: \(String(cString: strerror(errno)))")
        }
        let file = FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
        // Of what was opened, which nobody can exchange any more.
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw SettingError(description: "\(what) \(path) is no regular file")
        }
        guard status.st_uid == geteuid() || status.st_uid == 0 else {
            throw SettingError(
                description:
                    "\(what) \(path) belongs to another user (\(status.st_uid)) and is not obeyed; remove it, or run in a folder of your own"
            )
        }
        let others: mode_t = privacy == .secret ? 0o077 : 0o022
        guard status.st_mode & others == 0 else {
            throw SettingError(
                description: privacy == .secret
                    ? "\(what) \(path) is open to other users; run: chmod 600 \(path)"
                    : "\(what) \(path) can be written by other users; run: chmod go-w \(path)")
        }
        do { return try file.readToEnd() ?? Data() } catch {
            throw SettingError(description: "\(what) \(path) cannot be read: \(error.localizedDescription)")
        }
    }
}
