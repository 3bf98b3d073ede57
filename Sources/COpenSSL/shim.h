// The few things that libcurl does not tell about its own TLS connections, and the one question about keys that it only answers
// when it connects. libcurl's OpenSSL is the one that is asked.
#pragma once
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

// True when HTTP/2 was agreed upon (ALPN).
static inline int tls_speaks_http2(void *session) {
    const unsigned char *protocol = NULL;
    unsigned int length = 0;
    SSL_get0_alpn_selected((SSL *)session, &protocol, &length);
    return length == 2 && protocol[0] == 'h' && protocol[1] == '2';
}

// True when bytes were read from the socket that libcurl has not asked for: the rest of a record, or a part of the next.
static inline int tls_has_pending(void *session) { return SSL_has_pending((SSL *)session); }

// True when a connection on which nothing is under way is quiet: no application data waits to be read, and it has not ended. Records
// without application data, such as late session tickets, are worked off. The bytes are read from and, where the other side is out
// of order, an alert is written to the socket itself, because libcurl's own BIO works only inside libcurl; what was read stays in
// the session, and nothing is lost.
static inline int tls_is_quiet(void *session, int descriptor) {
    SSL *ssl = (SSL *)session;
    BIO *reading = SSL_get_rbio(ssl), *writing = SSL_get_wbio(ssl), *direct = BIO_new_socket(descriptor, BIO_NOCLOSE);
    if (!reading || !writing || !direct || SSL_has_pending(ssl)) {
        BIO_free(direct);
        return 0;
    }
    // A reference for each of the four places.
    BIO_up_ref(reading);
    BIO_up_ref(writing);
    BIO_up_ref(direct);
    SSL_set0_rbio(ssl, direct);
    SSL_set0_wbio(ssl, direct);
    ERR_clear_error();
    char byte;
    int count = SSL_peek(ssl, &byte, 1);
    int is_quiet = count <= 0 && SSL_get_error(ssl, count) == SSL_ERROR_WANT_READ && !SSL_has_pending(ssl);
    ERR_clear_error();
    SSL_set0_rbio(ssl, reading);
    SSL_set0_wbio(ssl, writing);
    return is_quiet;
}

static inline int tls_no_passphrase(char *buffer, int size, int writing, void *context) { return 0; }

// The SHA-256 of some bytes; 1 when it was computed.
static inline int sha256(const void *bytes, size_t count, unsigned char *digest) {
    return EVP_Digest(bytes, count, digest, NULL, EVP_sha256(), NULL);
}

// Whether a private key is a certificate's, both as PEM: 1 yes, 0 no, -1 the certificate cannot be read, -2 the key cannot.
static inline int pem_key_fits(const void *certificate, int certificate_size, const void *key, int key_size) {
    BIO *bio = BIO_new_mem_buf(certificate, certificate_size);
    X509 *x509 = bio ? PEM_read_bio_X509(bio, NULL, tls_no_passphrase, NULL) : NULL;
    BIO_free(bio);
    bio = BIO_new_mem_buf(key, key_size);
    EVP_PKEY *pkey = bio ? PEM_read_bio_PrivateKey(bio, NULL, tls_no_passphrase, NULL) : NULL;
    BIO_free(bio);
    int result = !x509 ? -1 : !pkey ? -2 : X509_check_private_key(x509, pkey) == 1;
    X509_free(x509);
    EVP_PKEY_free(pkey);
    ERR_clear_error();
    return result;
}
