import CCurl
import Glibc
import Testing

@testable import Transport

/// Whose fault a transfer without a response is.
@Suite(.timeLimit(.minutes(15))) struct EvidenceTests {
    private func failure(
        _ result: CURLcode, sends: Int = 1, text: String = "", wasBlocked: Bool = false, lacksDescriptors: Bool = false,
        isTLS: Bool = false, verification: Int = 0, systemError: Int32 = 0, hasProxy: Bool = false,
        proxyStatus: Int = 0,
        hasAuthorities: Bool = false
    ) -> HTTPExchange.Failure {
        TransferEvidence(
            result: result, text: text, sends: sends, wasBlocked: wasBlocked, lacksDescriptors: lacksDescriptors,
            isTLS: isTLS, verification: verification, systemError: systemError, hasProxy: hasProxy,
            proxyStatus: proxyStatus,
            hasAuthorities: hasAuthorities
        ).failure
    }

    @Test func `before anything went out, what we lack is ours`() {
        #expect(failure(CURLE_OUT_OF_MEMORY, sends: 0) == .localResources)
        #expect(failure(CURLE_COULDNT_CONNECT, sends: 0, lacksDescriptors: true) == .localResources)
        for code in [CURLE_COULDNT_RESOLVE_HOST, CURLE_OUT_OF_MEMORY] {
            #expect(failure(code, sends: 0, text: "getaddrinfo() thread failed to start") == .localResources)
        }
        #expect(failure(CURLE_URL_MALFORMAT, sends: 0) == .invalidRequest)
        #expect(failure(CURLE_UNSUPPORTED_PROTOCOL, sends: 0) == .invalidRequest)
        #expect(failure(CURLE_COULDNT_CONNECT, sends: 0, wasBlocked: true) == .blockedAddress)
    }

    @Test func `what this machine or its proxy lacks is no receiver's fault`() {
        for error in [EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM, EAGAIN] {
            #expect(failure(CURLE_COULDNT_CONNECT, sends: 0, systemError: error) == .localResources)
        }
        #expect(failure(CURLE_COULDNT_CONNECT, sends: 0, systemError: ECONNREFUSED) == .connect)
        #expect(failure(CURLE_COULDNT_CONNECT, sends: 0, systemError: ECONNREFUSED, hasProxy: true) == .localResources)
        #expect(failure(CURLE_COULDNT_RESOLVE_PROXY, sends: 0, hasProxy: true) == .localResources)
        #expect(failure(CURLE_SSL_CACERT_BADFILE, sends: 0) == .localResources)
        #expect(failure(CURLE_SSL_CACERT_BADFILE, sends: 0, hasAuthorities: true) == .tls)
        for code in [CURLE_FAILED_INIT, CURLE_NOT_BUILT_IN, CURLE_UNKNOWN_OPTION] {
            #expect(failure(code, sends: 0) == .localResources)
        }
        #expect(
            failure(
                CURLE_RECV_ERROR, sends: 0, text: "CONNECT tunnel failed, response 403", hasProxy: true,
                proxyStatus: 403)
                == .proxy)
        #expect(
            failure(
                CURLE_RECV_ERROR, sends: 0, text: "CONNECT tunnel failed, response 407", hasProxy: true,
                proxyStatus: 407)
                == .localResources)
        // It took the connection, and said nothing.
        for code in [CURLE_RECV_ERROR, CURLE_SEND_ERROR, CURLE_GOT_NOTHING] {
            #expect(failure(code, sends: 0, hasProxy: true) == .localResources)
            #expect(failure(code, sends: 0, hasProxy: true, proxyStatus: 200) == .connectionLost)
            #expect(failure(code, sends: 0) == .connectionLost)
        }
        // It may still be trying to reach the receiver.
        #expect(failure(CURLE_OPERATION_TIMEDOUT, sends: 0, hasProxy: true) == .timeout)
    }

    /// libcurl quotes the receiver's certificate: its words are the receiver's.
    @Test(arguments: [
        "getaddrinfo() thread failed to start", "CONNECT tunnel failed, response 403", "certificate required",
        "alert unknown ca",
    ])
    func `the words in a certificate decide nothing`(words: String) {
        let text = "SSL: certificate subject name '\(words)' does not match target host name '127.0.0.1'"
        for quoted in [text, words] {
            let failure = failure(CURLE_PEER_FAILED_VERIFICATION, sends: 0, text: quoted, isTLS: true, verification: 62)
            #expect(failure == .tlsWrongHost, "\(quoted)")
        }
    }

    @Test func `what went out is the receiver's to answer for, whatever libcurl calls it`() {
        for code in (1..<100).map({ CURLcode(UInt32($0)) }) {
            for text in ["", "out of memory", "getaddrinfo() thread failed to start"] {
                let failure = failure(code, text: text)
                #expect(
                    failure != .localResources && failure != .invalidRequest && failure != .cancelled,
                    "\(code.rawValue)")
            }
        }
    }

    @Test(arguments: [
        (CURLE_COULDNT_RESOLVE_HOST, 0, HTTPExchange.Failure.dns), (CURLE_COULDNT_CONNECT, 0, .connect),
        (CURLE_OPERATION_TIMEDOUT, 0, .timeout), (CURLE_OPERATION_TIMEDOUT, 1, .timeout),
        (CURLE_GOT_NOTHING, 1, .connectionLost),
        (CURLE_RECV_ERROR, 1, .connectionLost), (CURLE_SEND_ERROR, 1, .connectionLost),
        (CURLE_HTTP2_STREAM, 1, .connectionLost),
        (CURLE_WEIRD_SERVER_REPLY, 1, .protocolError), (CURLE_OUT_OF_MEMORY, 1, .protocolError),
        (CURLE_ABORTED_BY_CALLBACK, 2, .connectionLost), (CURLE_UNSUPPORTED_PROTOCOL, 1, .protocolError),
        (CURLE_PROXY, 0, .proxy), (CURLE_SSL_CONNECT_ERROR, 0, .tls),
    ])
    func `each class is told by its code`(code: CURLcode, sends: Int, expected: HTTPExchange.Failure) {
        #expect(failure(code, sends: sends) == expected)
    }

    @Test(arguments: [
        (10, HTTPExchange.Failure.tlsExpired), (9, .tlsExpired), (18, .tlsSelfSigned), (20, .tlsUnknownIssuer),
        (62, .tlsWrongHost),
        (1, .tls),
    ])
    func `a certificate's fault is told by the verification`(verification: Int, expected: HTTPExchange.Failure) {
        #expect(failure(CURLE_PEER_FAILED_VERIFICATION, sends: 0, isTLS: true, verification: verification) == expected)
    }
}
