//! TLS for everything on the one port. Workers ask for a server name of their own, and only there a client certificate is
//! demanded: browsers, which would ask the person in front of them for one, never see that.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use cooper_common::error::{Code, Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{
    LazyConfigAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{Acceptor, WebPkiClientVerifier},
    },
    server::TlsStream,
};

/// Between looks at whether the files have changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Where certificates are, as PEM.
#[derive(Debug, Clone)]
pub struct Settings {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Who signs the certificates of workers; none: their tokens are enough.
    pub client_ca: Option<PathBuf>,
    /// The server name that workers with a certificate ask for.
    pub worker_name: String,
}

/// What is shown and demanded now.
pub struct Tls {
    settings: Settings,
    now: RwLock<Offer>,
}

#[derive(Clone)]
struct Offer {
    everybody: Arc<ServerConfig>,
    /// With a client certificate that has to be good.
    workers: Option<Arc<ServerConfig>>,
}

/// A file as it was when it was read.
type Stamp = Option<(u64, u64, i64, i64)>;

impl Tls {
    /// # Errors
    /// `config_invalid`, with the file that cannot be used.
    pub fn load(settings: Settings) -> Result<Arc<Self>> {
        let now = RwLock::new(Offer::read(&settings)?);
        Ok(Arc::new(Self { settings, now }))
    }

    /// True when workers have to show a certificate.
    pub fn demands_certificates(&self) -> bool {
        self.settings.client_ca.is_some()
    }

    /// Takes what the files hold from now on, whenever they change. What cannot be used changes nothing.
    pub async fn follow(self: Arc<Self>) {
        let mut seen = self.settings.stamps();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stamps = self.settings.stamps();
            if stamps == seen {
                continue;
            }
            seen = stamps;
            match Offer::read(&self.settings) {
                Ok(offer) => {
                    *self.now.write().unwrap_or_else(PoisonError::into_inner) = offer;
                    tracing::info!("certificates were read again");
                }
                Err(error) => tracing::warn!(%error, "the certificates of before are used"),
            }
        }
    }

    /// The handshake of one connection.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO) -> io::Result<TlsStream<IO>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let offer = self.now.read().unwrap_or_else(PoisonError::into_inner).clone();
        let is_worker = start.client_hello().server_name() == Some(self.settings.worker_name.as_str());
        let config = offer.workers.filter(|_| is_worker).unwrap_or(offer.everybody);
        start.into_stream(config).await
    }
}

impl Settings {
    fn stamps(&self) -> Vec<Stamp> {
        let files = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        files.into_iter().flatten().map(|path| stamp(path)).collect()
    }
}

fn stamp(path: &Path) -> Stamp {
    let found = fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}

impl Offer {
    fn read(settings: &Settings) -> Result<Self> {
        let unusable = |path: &Path, what: &dyn std::fmt::Display| {
            Error::new(Code::ConfigInvalid, format!("{} cannot be used: {what}", path.display())).with_hint(
                "tls_cert, tls_key and tls_client_ca are PEM files; `cooper certs init` makes some",
            )
        };
        let chain = certificates(&settings.cert).map_err(|what| unusable(&settings.cert, &what))?;
        let key =
            || PrivateKeyDer::from_pem_file(&settings.key).map_err(|what| unusable(&settings.key, &what));
        let provider = Arc::new(ring::default_provider());
        let builder = || {
            ServerConfig::builder_with_provider(provider.clone())
                .with_safe_default_protocol_versions()
                .map_err(|what| Error::internal(what.to_string()))
        };
        // Not the certificate's key, or a key of a kind that is not known.
        let pair = |what| unusable(&settings.cert, &what);
        let everybody =
            builder()?.with_no_client_auth().with_single_cert(chain.clone(), key()?).map_err(pair)?;
        let workers = settings.client_ca.as_deref().map(|path| {
            let mut roots = RootCertStore::empty();
            for root in certificates(path).map_err(|what| unusable(path, &what))? {
                roots.add(root).map_err(|what| unusable(path, &what))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            let verifier = verifier.build().map_err(|what| unusable(path, &what))?;
            let workers = builder()?.with_client_cert_verifier(verifier);
            workers.with_single_cert(chain, key()?).map(spoken).map_err(pair)
        });
        Ok(Self { everybody: spoken(everybody), workers: workers.transpose()? })
    }
}

fn certificates(path: &Path) -> std::result::Result<Vec<CertificateDer<'static>>, String> {
    let read =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>);
    let found = read.map_err(|error| error.to_string())?;
    if found.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(found) }
}

fn spoken(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}
