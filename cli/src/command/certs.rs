//! `cooper certs`: certificates for those who have no authority of their own.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cooper_common::{clock, config, config::Role, error::Code};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use time::OffsetDateTime;

use crate::{
    args,
    context::Context,
    failure::{Failure, Result},
};

const AUTHORITY_DAYS: u32 = 3_650;
/// Clocks of other machines may be behind.
const EARLIER_S: i64 = 3_600;

/// What a certificate is good for.
enum Use {
    /// A coordinator, by these names.
    Server(Vec<String>),
    Worker,
}

pub fn run(context: &Context, args: args::Certs) -> Result<u8> {
    let made = match args {
        args::Certs::Init(args) => init(context, &args)?,
        args::Certs::Issue(args) => issue(context, args)?,
    };
    let text = made.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join("\n");
    let files: Vec<_> = made.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    context.out.answer(|| json!({"files": files}), || text.clone())?;
    Ok(0)
}

fn init(context: &Context, args: &args::CertsInit) -> Result<Vec<PathBuf>> {
    let dir = &args.dir;
    // A mount that is still empty will do; an authority that others trust already is not replaced.
    match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => {
            let message = format!("{} is not empty", dir.display());
            return Err(Failure::new(Code::InvalidArgument, message).hint(
                "name a new directory; `cooper certs issue` makes more certificates by what is there",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| cannot(dir, &error))?;
        }
        Err(error) => return Err(cannot(dir, &error)),
    }
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = dated(CertificateParams::default(), "Cooper authority", AUTHORITY_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(failed)?;
    let mut made = write_pair(dir, "ca", &certificate.pem(), &key)?;
    let issuer = Issuer::new(params, key);
    let server = Use::Server(names(context, &args.hosts)?);
    for (name, made_for) in [("server", server), ("worker", Use::Worker)] {
        made.extend(make(dir, name, made_for, &issuer, args.days)?);
    }
    Ok(made)
}

fn issue(context: &Context, args: args::CertsIssue) -> Result<Vec<PathBuf>> {
    if !args.name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) || args.name == "ca" {
        let message = format!("{:?} cannot be the name of a certificate", args.name);
        return Err(Failure::new(Code::InvalidArgument, message)
            .hint("take letters, digits, '.', '_' and '-'; the authority itself is not replaced"));
    }
    let read = |name: &str| {
        let path = args.dir.join(name);
        fs::read_to_string(&path).map_err(|error| {
            cannot(&path, &error).hint("make an authority with `cooper certs init --dir DIR`")
        })
    };
    let key = KeyPair::from_pem(&read("ca.key")?).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt")?, key).map_err(failed)?;
    let made_for = match args.hosts.as_slice() {
        [] => Use::Worker,
        hosts => Use::Server(names(context, hosts)?),
    };
    make(args.out.as_ref().unwrap_or(&args.dir), &args.name, made_for, &issuer, args.days)
}

/// What a coordinator is called here, from everywhere else, and by workers.
fn names(context: &Context, hosts: &[String]) -> Result<Vec<String>> {
    let config = context.config(Role::Coordinator, Default::default())?;
    let worker_name = config.text("tls_worker_name");
    let worker_name = worker_name.or_else(|| match config::setting("tls_worker_name").default {
        config::Default::Text(name) => Some(name.to_owned()),
        _ => None,
    });
    Ok(["localhost".to_owned()].into_iter().chain(worker_name).chain(hosts.iter().cloned()).collect())
}

fn make(
    dir: &Path,
    name: &str,
    made_for: Use,
    issuer: &Issuer<'_, KeyPair>,
    days: u32,
) -> Result<Vec<PathBuf>> {
    let (names, usage) = match made_for {
        Use::Server(names) => (names, ExtendedKeyUsagePurpose::ServerAuth),
        Use::Worker => (Vec::new(), ExtendedKeyUsagePurpose::ClientAuth),
    };
    let is_server = !names.is_empty();
    let params = CertificateParams::new(names).map_err(failed)?;
    let mut params = dated(params, name, days)?;
    if is_server {
        for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
            params.subject_alt_names.push(SanType::IpAddress(address));
        }
    }
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    write_pair(dir, name, &certificate.pem(), &key)
}

fn dated(mut params: CertificateParams, name: &str, days: u32) -> Result<CertificateParams> {
    let now = clock::wall_ms() / 1_000;
    let at = |seconds: i64| OffsetDateTime::from_unix_timestamp(seconds).map_err(failed);
    params.not_before = at(now - EARLIER_S)?;
    params.not_after = at(now + i64::from(days) * 86_400)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// The key is its owner's alone. Both are there whole, or as they were before.
fn write_pair(dir: &Path, name: &str, certificate: &str, key: &KeyPair) -> Result<Vec<PathBuf>> {
    let files =
        [(format!("{name}.crt"), certificate, 0o644), (format!("{name}.key"), &*key.serialize_pem(), 0o600)];
    let mut made = Vec::new();
    for (file, text, mode) in files {
        let (path, fresh) = (dir.join(&file), dir.join(format!(".{file}.new")));
        let write = || {
            let _ = fs::remove_file(&fresh);
            let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
            out.write_all(text.as_bytes())?;
            out.sync_all()?;
            fs::rename(&fresh, &path)
        };
        write().map_err(|error: io::Error| cannot(&path, &error))?;
        made.push(path);
    }
    Ok(made)
}

fn cannot(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Code::InvalidArgument, format!("{}: {error}", path.display()))
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Code::InvalidArgument, format!("no certificate can be made: {error}"))
        .hint("names are those of the DNS, or addresses")
}
