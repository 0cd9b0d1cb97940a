//! A certificate authority of this worker's own: in memory for as long as its host lives, trusted by the sessions that have
//! secrets put into their requests, and by nobody else.

use std::{io, sync::Arc};

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};

#[derive(Clone, Serialize, Deserialize)]
pub struct Authority {
    /// As PEM.
    pub certificate: String,
    /// PKCS #8.
    key: Vec<u8>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority(…)")
    }
}

/// Keys live no longer than the worker; the clock of a machine may be wrong.
fn dated(mut params: CertificateParams, name: &str) -> CertificateParams {
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// The same each time, so that the certificate need not be read to sign with its key.
fn own() -> CertificateParams {
    let mut params = dated(CertificateParams::default(), "Cooper worker");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    pub fn make() -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = own().self_signed(&key).map_err(io::Error::other)?;
        let encoded = base64::engine::general_purpose::STANDARD.encode(certificate.der());
        let lines: Vec<_> = encoded.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        let certificate =
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"));
        Ok(Self { certificate, key: key.serialize_der() })
    }

    /// To be a host to those who trust it: with a fresh key and a certificate for this name alone.
    pub fn server(&self, host: &str) -> io::Result<Arc<ServerConfig>> {
        let key = KeyPair::try_from(&*self.key).map_err(io::Error::other)?;
        let issuer = Issuer::new(own(), key);
        let params = CertificateParams::new([host.to_owned()]).map_err(io::Error::other)?;
        // A common name is no longer than 64 bytes; nobody reads it.
        let mut params = dated(params, "Cooper");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = params.signed_by(&key, &issuer).map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
