import Foundation

/// Where a cluster lies and which user owns it.
struct Place {
    /// The folder that the caller named, absolute.
    let folder: String
    /// The cluster's data directory.
    let data: String
    /// The folder of its unix socket.
    let socket: String
    /// The user that it runs as, when that is not our own user.
    let user: String?

    /// Finds the place, and creates the folders that have to exist before the cluster.
    init(folder: String) throws {
        let folder = URL(fileURLWithPath: folder).standardizedFileURL.path
        self.folder = folder
        do {
            try Self.prepare(folder)
            guard geteuid() == 0 else {
                user = nil
                data = folder + "/postgres"
                socket = Self.socketFolder(beside: data, key: folder)
                return
            }
            // Only root may enter the folder, and so that user cannot reach it.
            user = getpwnam("postgres") != nil ? "postgres" : "nobody"
            data = try Self.rootsCluster(linkedFrom: folder + "/postgres")
            socket = Self.socketFolder(beside: data, key: folder)
            try FileManager.default.createDirectory(atPath: Self.rootsClusters, withIntermediateDirectories: true)
        } catch let error as CocoaError {
            throw EmbeddedCluster.StartError(
                description:
                    "cannot write to \(folder): \(error.localizedDescription); run it in a folder of your own, or set DATABASE_URL"
            )
        }
    }

    /// Only the link tells where root's cluster is: it moves with its folder, and a newly created
    /// folder has another one.
    private static func rootsCluster(linkedFrom link: String) throws -> String {
        func linked() -> String? {
            (try? FileManager.default.destinationOfSymbolicLink(atPath: link)).flatMap {
                $0.hasPrefix(rootsClusters) ? $0 : nil
            }
        }
        if let data = linked() { return data }
        let name = String(UInt64.random(in: 1...UInt64.max), radix: 36)
        do { try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: rootsClusters + name) } catch
        {
            // Another process made it at this moment.
            guard let data = linked() else { throw error }
            return data
        }
        return rootsClusters + name
    }

    /// A unix socket's path has at most 107 bytes; deep folders get a short one under /tmp.
    private static func socketFolder(beside data: String, key: String) -> String {
        let near = data + ".socket"
        // Only plain characters: the path goes into a connection string and a shell's command line.
        let isPlain = near.unicodeScalars.allSatisfy {
            $0.isASCII && ($0.properties.isAlphabetic || "0123456789/._-".unicodeScalars.contains($0))
        }
        return isPlain && near.utf8.count < 85 ? near : "/tmp/outbox-\(shortHash(key))"
    }

    /// Creates the folder, which only its owner may enter. A folder of another user is not used:
    /// its content belongs to that user.
    private static func prepare(_ folder: String) throws {
        let parent = (folder as NSString).deletingLastPathComponent
        try FileManager.default.createDirectory(atPath: parent, withIntermediateDirectories: true)
        if mkdir(folder, 0o700) != 0, errno != EEXIST {
            throw EmbeddedCluster.StartError(
                description: "cannot write to \(folder): \(String(cString: strerror(errno)))")
        }
        let descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
        defer { if descriptor >= 0 { close(descriptor) } }
        var status = stat()
        guard descriptor >= 0, fstat(descriptor, &status) == 0, status.st_uid == geteuid() else {
            throw EmbeddedCluster.StartError(
                description:
                    "cannot write to \(folder): it is a link or belongs to another user; remove it, or run in a folder of your own"
            )
        }
        if status.st_mode & 0o077 != 0, fchmod(descriptor, 0o700) != 0 {
            throw EmbeddedCluster.StartError(
                description: "cannot write to \(folder): \(String(cString: strerror(errno)))")
        }
    }

    /// Creates an empty folder that only the cluster's user may enter, for initdb to fill: that
    /// user may not write beside it.
    func prepareUnfinished(_ path: String) throws {
        do {
            if FileManager.default.fileExists(atPath: path) {
                // Its content belongs to the user, and so the user removes it.
                do { try asUser("/usr/bin/find", [path, "-mindepth", "1", "-delete"]) } catch let failure
                    as Program.Failure
                {
                    throw EmbeddedCluster.StartError(description: "cannot make \(path): \(failure.output.suffix(300))")
                }
                guard rmdir(path) == 0 else {
                    throw EmbeddedCluster.StartError(
                        description: "cannot make \(path): \(String(cString: strerror(errno)))")
                }
            }
            try FileManager.default.createDirectory(
                atPath: path, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
            if let user { try FileManager.default.setAttributes([.ownerAccountName: user], ofItemAtPath: path) }
        } catch let refusal as EmbeddedCluster.StartError {
            throw refusal
        } catch {
            throw EmbeddedCluster.StartError(description: "cannot make \(path): \(error.localizedDescription)")
        }
    }

    /// Creates the socket's folder, which only its owner may enter: this keeps other users out of
    /// the cluster.
    func prepareSocket() throws {
        do {
            if !FileManager.default.fileExists(atPath: socket) {
                try FileManager.default.createDirectory(
                    atPath: socket, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
                if let user { try FileManager.default.setAttributes([.ownerAccountName: user], ofItemAtPath: socket) }
            }
            var status = stat()
            let owner = user.flatMap { getpwnam($0)?.pointee.pw_uid } ?? geteuid()
            guard lstat(socket, &status) == 0, status.st_uid == owner, status.st_mode & 0o077 == 0 else {
                throw EmbeddedCluster.StartError(
                    description: "the socket folder \(socket) belongs to another user or is open to others; remove it")
            }
        } catch let error as CocoaError {
            throw EmbeddedCluster.StartError(
                description: "cannot make the socket folder \(socket): \(error.localizedDescription)")
        }
    }

    /// Runs a program as the cluster's user.
    @discardableResult
    func asUser(_ program: String, _ arguments: [String]) throws -> String {
        try Self.run(program, arguments, as: user)
    }

    @discardableResult
    static func run(_ program: String, _ arguments: [String], as user: String?) throws -> String {
        guard let user else { return try Program.run(program, arguments) }
        return try Program.run("/usr/sbin/runuser", ["-u", user, "--", program] + arguments)
    }

    private static let rootsClusters = "/var/lib/outbox/"

    private static func shortHash(_ text: String) -> String {
        let hash = text.utf8.reduce(UInt64(0xCBF2_9CE4_8422_2325)) { ($0 ^ UInt64($1)) &* 0x0000_0100_0000_01B3 }
        return String(hash, radix: 36)
    }
}

/// An advisory lock on a file (`flock`), which the kernel drops when its process ends in any way.
final class FileLock: Sendable {
    private let descriptor: Int32
    private let path: String

    init(_ path: String) throws {
        self.path = path
        descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else {
            throw EmbeddedCluster.StartError(description: "cannot write \(path): \(String(cString: strerror(errno)))")
        }
    }

    deinit { close(descriptor) }

    /// Waits for the lock; a process that holds it for longer than that hangs, and the file names
    /// it.
    func lock(waiting limit: Duration) throws {
        let deadline = ContinuousClock.now + limit
        while flock(descriptor, LOCK_EX | LOCK_NB) != 0 {
            guard .now < deadline else {
                throw EmbeddedCluster.StartError(
                    description:
                        "another process has been starting or stopping the embedded PostgreSQL for \(limit); see: fuser \(path)"
                )
            }
            usleep(50_000)
        }
    }

    func lockShared() {
        while flock(descriptor, LOCK_SH) != 0, errno == EINTR {}
    }

    func tryLockAlone() -> Bool { flock(descriptor, LOCK_EX | LOCK_NB) == 0 }

    func unlock() { flock(descriptor, LOCK_UN) }
}
