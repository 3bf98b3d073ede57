import Bytewise
import COpenSSL

extension HTTPRequest.TLS {
    /// The certificate as libcurl gets it: with a mark of the key behind it, where readers of PEM
    /// skip it. libcurl shares connections between requests with the same certificates and
    /// authorities, and does not compare keys: an endpoint that names another endpoint's
    /// certificate, which is public, could use a connection that the other key has opened. The mark
    /// is the key's digest (SHA-256).
    var markedCertificate: String? {
        guard let certificate else { return nil }
        let bytes = Array((key?.text ?? "").utf8)
        var digest = [UInt8](repeating: 0, count: 32)
        unsafe bytes.withUnsafeBytes { bytes in
            unsafe digest.withUnsafeMutableBufferPointer { digest in
                guard unsafe sha256(bytes.baseAddress, bytes.count, digest.baseAddress) == 1 else {
                    preconditionFailure("SHA-256 is not there")
                }
            }
        }
        return certificate.text + "\n# \(digest.map { String($0, radix: 16) }.joined(separator: "."))\n"
    }

    /// Why no connection can be made with this certificate and key; nil when one can, as far as
    /// that can be checked without a receiver.
    package var defect: String? {
        guard let certificate, let key else { return nil }
        let (certificateBytes, keyBytes) = (Array(certificate.utf8), Array(key.utf8))
        let answer = unsafe certificateBytes.withUnsafeBytes { certificate in
            unsafe keyBytes.withUnsafeBytes { key in
                unsafe pem_key_fits(
                    certificate.baseAddress, Int32(certificate.count), key.baseAddress, Int32(key.count))
            }
        }
        return switch answer {
        case 1: nil
        case 0: "the client's private key is not that of the client certificate"
        case -1: "the client certificate cannot be read"
        default: "the client's private key cannot be read"
        }
    }
}
