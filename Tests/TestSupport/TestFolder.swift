import Foundation
import Synchronization

/// One folder for all files of a test process. It goes when the process ends.
package enum TestFolder {
    private static let root: String = {
        // Short: servers have their sockets below it, whose paths have at most 107 bytes.
        let name = "outbox-tests-\(UUID().uuidString.prefix(8))"
        let path = FileManager.default.temporaryDirectory.path + "/" + name
        do { try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true) } catch {
            preconditionFailure("cannot create \(path): \(error)")
        }
        atexit {
            // Root's embedded clusters lie elsewhere, with a link to them.
            let files = FileManager.default
            for path in (try? files.subpathsOfDirectory(atPath: TestFolder.root)) ?? []
            where path.hasSuffix("/postgres") {
                guard let data = try? files.destinationOfSymbolicLink(atPath: TestFolder.root + "/" + path),
                    data.hasPrefix("/var/lib/outbox/")
                else { continue }
                for path in [data, data + ".socket"] { try? files.removeItem(atPath: path) }
            }
            try? files.removeItem(atPath: TestFolder.root)
        }
        return path
    }()

    private static let numbers = Atomic(0)

    /// A path for a new file or folder.
    package static func path(_ name: String) -> String {
        "\(root)/\(name)-\(numbers.add(1, ordering: .relaxed).newValue)"
    }
}
