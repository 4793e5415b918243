#pragma once

// A certificate authority that lives as long as a test, so that https can be tested without the network.

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace tessera::server::testing {

template <class T, void (*Free)(T*)>
struct OpensslDeleter {
  void operator()(T* object) const { Free(object); }
};
using Key = std::unique_ptr<EVP_PKEY, OpensslDeleter<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, OpensslDeleter<X509, X509_free>>;

/// A key and the certificate that names it.
struct Identity {
  Key key;
  Certificate certificate;
};

class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name = "test authority") : self_(make(name, "", 3600, nullptr)) {}

  /// A server's identity for `dns_name`, valid until `seconds` from now (negative: expired).
  Identity issue(const std::string& dns_name, long seconds = 3600) const {
    return make(dns_name, "DNS:" + dns_name, seconds, &self_);
  }

  /// The authority's certificate, as a client trusts it.
  std::string pem() const {
    BIO* memory = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(memory, self_.certificate.get());
    char* text = nullptr;
    const long size = BIO_get_mem_data(memory, &text);
    std::string pem(text, static_cast<size_t>(size));
    BIO_free(memory);
    return pem;
  }

 private:
  static void extend(X509* subject, X509* issuer, int kind, const std::string& value) {
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, subject, nullptr, nullptr, 0);
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, kind, value.c_str());
    X509_add_ext(subject, extension, -1);
    X509_EXTENSION_free(extension);
  }

  // `issuer` null: signed by itself, and an authority.
  static Identity make(const std::string& name, const std::string& names, long seconds, const Identity* issuer) {
    Identity made{Key(EVP_EC_gen("P-256")), Certificate(X509_new())};
    X509* certificate = made.certificate.get();
    static long serial = 1;
    X509_set_version(certificate, 2);
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial++);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -7200);
    X509_gmtime_adj(X509_getm_notAfter(certificate), seconds);
    X509_set_pubkey(certificate, made.key.get());
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509* parent = issuer ? issuer->certificate.get() : certificate;
    X509_set_issuer_name(certificate, X509_get_subject_name(parent));
    extend(certificate, parent, NID_basic_constraints, issuer ? "critical,CA:FALSE" : "critical,CA:TRUE");
    if (!names.empty()) extend(certificate, parent, NID_subject_alt_name, names);
    X509_sign(certificate, issuer ? issuer->key.get() : made.key.get(), EVP_sha256());
    return made;
  }

  Identity self_;
};

}  // namespace tessera::server::testing
