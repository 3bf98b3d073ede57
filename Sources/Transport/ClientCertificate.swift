import COpenSSL

extension HTTPRequest.TLS {
    /// Why no connection can be made with this certificate and key; nil where one can, as far as that is to be seen without a
    /// receiver.
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
