//! `ssl:`, TLS with a certificate on both sides, as OVS's own daemons and tools speak it. Knows files and streams, nothing of
//! the protocol.
//!
//! As in OVS, the peer is whoever has a certificate of this CA: OVS's PKI gives a switch or a server a certificate that names
//! neither a host nor an address (ovs-pki(8)), so names are not compared and the CA must be one's own.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// PEM files, with the meaning that the options of the same name have for `ovs-vsctl` and `ovs-vswitchd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SslFiles {
    pub private_key: PathBuf,
    /// Ours, with those of intermediate authorities behind it if there are any.
    pub certificate: PathBuf,
    /// Of the authority (or several) that signed the peer's certificate.
    pub ca_cert: PathBuf,
}

/// Reads the files each time, so that renewed ones are taken up by the next connection.
pub(crate) async fn connect(tcp: TcpStream, host: &str, files: &SslFiles) -> io::Result<TlsStream<TcpStream>> {
    // Three small files of this host: quicker read than handed to another thread.
    let config = config(files)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

fn config(files: &SslFiles) -> io::Result<ClientConfig> {
    let provider = Arc::new(crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca_cert)? {
        roots.add(certificate).map_err(|error| bad(&files.ca_cert, error))?;
    }
    let key = PrivateKeyDer::from_pem_file(&files.private_key).map_err(|error| unread(&files.private_key, error))?;
    let verifier = OfThisAuthority { roots, provider: Arc::clone(&provider) };
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        // "Dangerous" is that names are not compared: see the head of this file.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(certificates(&files.certificate)?, key)
        .map_err(|error| bad(&files.certificate, error))
}

/// At least one.
fn certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if found.is_empty() => Err(bad(path, "it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(unread(path, error)),
    }
}

fn unread(path: &Path, error: pem::Error) -> io::Error {
    match error {
        pem::Error::Io(error) => io::Error::new(error.kind(), format!("{}: {error}", path.display())),
        error => bad(path, error),
    }
}

fn bad(path: &Path, error: impl fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display()))
}

/// Accepts a certificate that one of the roots vouches for now, whatever name it has.
#[derive(Debug)]
struct OfThisAuthority {
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for OfThisAuthority {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_what_it_should_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let empty = path("empty.pem", "no certificate in here\n");
        let garbled = path("garbled.pem", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
        let files = |ca_cert: &Path| SslFiles {
            private_key: dir.path().join("absent.pem"),
            certificate: empty.clone(),
            ca_cert: ca_cert.to_owned(),
        };
        let text = |ca_cert: &Path| config(&files(ca_cert)).unwrap_err().to_string();
        assert_eq!(text(&empty), format!("{}: it holds no certificate", empty.display()));
        assert!(text(&garbled).starts_with(&format!("{}: ", garbled.display())), "{}", text(&garbled));
        let absent = dir.path().join("absent.pem");
        assert_eq!(text(&absent), format!("{}: No such file or directory (os error 2)", absent.display()));
    }
}
