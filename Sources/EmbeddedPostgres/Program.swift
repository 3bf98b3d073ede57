import Glibc

/// Runs a program to its end.
///
/// Foundation's `Process` waits on a descriptor that every descendant inherits, and so never
/// returns from a `pg_ctl start`: the server that it starts keeps that descriptor. This type waits
/// for the process alone.
enum Program {
    struct Failure: Error {
        let output: String
    }

    /// Returns its output; throws a `Failure` with its output when it did not succeed.
    @discardableResult
    static func run(_ path: String, _ arguments: [String]) throws -> String {
        var ends: [Int32] = [-1, -1]
        guard pipe(&ends) == 0 else { throw Failure(output: String(cString: strerror(errno))) }
        for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 1)
        posix_spawn_file_actions_adddup2(&actions, ends[1], 2)
        // Another user may not be allowed to enter our working directory.
        let words = (["/bin/sh", "-c", "cd / && exec \"$@\"", "sh", path] + arguments).map { strdup($0) } + [nil]
        defer { for word in words { free(word) } }
        // A started server keeps its environment for life, where its user can read it: it gets only
        // the variables that it needs.
        let known = ["PATH", "HOME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "TMPDIR"]
        let environment =
            known.compactMap { name in getenv(name).map { strdup(name + "=" + String(cString: $0)) } } + [nil]
        defer { for word in environment { free(word) } }
        var pid = pid_t()
        let status = posix_spawn(&pid, "/bin/sh", &actions, nil, words, environment)
        close(ends[1])
        defer { close(ends[0]) }
        guard status == 0 else { throw Failure(output: "\(path): \(String(cString: strerror(status)))") }

        var output: [UInt8] = []
        var chunk = [UInt8](repeating: 0, count: 4096)
        while true {
            let count = read(ends[0], &chunk, chunk.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            output += chunk[..<count]
        }
        var exit: Int32 = 0
        while waitpid(pid, &exit, 0) < 0, errno == EINTR {}
        let text = String(decoding: output, as: UTF8.self)
        guard exit == 0 else { throw Failure(output: text) }
        return text
    }
}
