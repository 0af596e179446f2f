//! Program `certificates DIRECTORY NAME...`: makes an authority and a certificate for each named node.
//!
//! The program writes `ca.pem`, which users and nodes trust, and `ca-key.pem`, which belongs in a safe. For each node
//! the program writes `NAME.pem` and `NAME-key.pem`. An existing authority is kept, and the certificates of the named
//! nodes are replaced.
use std::{
    env,
    error::Error,
    fs::{self, OpenOptions},
    io::Write,
    net::Ipv4Addr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

/// Validity of the certificate of a node. Nothing ends the validity earlier, because nodes read no revocation list.
const NODES: Duration = Duration::days(30);
/// Validity of the authority.
const AUTHORITY: Duration = Duration::days(365);
/// Time by which the validity begins in the past, because the clocks of other machines may be late.
const BEFORE: Duration = Duration::hours(1);

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let directory = arguments.next().map(PathBuf::from);
    let names: Vec<_> = arguments.collect();
    let Some(directory) = directory.filter(|_| !names.is_empty()) else {
        eprintln!("usage: certificates DIRECTORY NAME...");
        return ExitCode::FAILURE;
    };
    match make(&directory, &names) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("certificates: {}: {e}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn make(directory: &Path, names: &[String]) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(directory)?;
    let authority = authority(directory)?;
    for name in names {
        let key = KeyPair::generate()?;
        // The first name identifies the node to its peers. Users type the other name and the address.
        let mut params = CertificateParams::new([format!("{name}.peers.internal"), "localhost".to_owned()])?;
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node is the server of some connections and the client of others.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        lives_for(&mut params, NODES);
        let certificate = params.signed_by(&key, &authority)?;
        write(&directory.join(format!("{name}-key.pem")), &key.serialize_pem())?;
        write(&directory.join(format!("{name}.pem")), &certificate.pem())?;
    }
    Ok(())
}

/// Reads the authority in the directory, or makes one if its certificate or its key is missing.
fn authority(directory: &Path) -> Result<Issuer<'static, KeyPair>, Box<dyn Error>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "examples/axum-https");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    lives_for(&mut params, AUTHORITY);
    let (certificate, key) = (directory.join("ca.pem"), directory.join("ca-key.pem"));
    if certificate.exists() && key.exists() {
        return Ok(Issuer::new(params, KeyPair::from_pem(&fs::read_to_string(key)?)?));
    }
    let pair = KeyPair::generate()?;
    write(&key, &pair.serialize_pem())?;
    write(&certificate, &params.self_signed(&pair)?.pem())?;
    Ok(Issuer::new(params, pair))
}

fn lives_for(params: &mut CertificateParams, time: Duration) {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - BEFORE, now + time);
}

/// Writes a file that only its owner may read.
///
/// The rename replaces an existing file at once, so that a process which reads it meanwhile gets all of the old file or
/// all of the new one.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let half = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&half)?;
    file.write_all(text.as_bytes())?;
    fs::rename(half, path)
}
