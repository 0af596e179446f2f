//! Kubeconfig: the configuration of a client for one context.
//!
//! `Config::from_custom_kubeconfig` is not used, because kube compares `NO_PROXY` with the proxy instead of the API
//! server, applies it to `proxy-url` too, and refuses the kubeconfig for a comma at the end of `NO_PROXY`.

use http::Uri;
use kube::{
    Config,
    config::{ExecAuthCluster, Kubeconfig, KubeconfigError},
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{api::causes, proxies::Proxies};

/// Returns the configuration for a context, otherwise for the current one. The text of an error has no secret.
pub(crate) fn config(read: Kubeconfig, context: Option<&str>, proxies: &Proxies) -> Result<Config, String> {
    let Some(name) = context.or(read.current_context.as_deref()) else {
        return Err("there is no current-context".to_owned());
    };
    let context = read.contexts.into_iter().find(|one| one.name == name).and_then(|one| one.context);
    let context = context.ok_or_else(|| format!("there is no context {name:?}"))?;
    let cluster = read.clusters.into_iter().find(|one| one.name == context.cluster).and_then(|one| one.cluster);
    let cluster = cluster.ok_or_else(|| format!("there is no cluster {:?}", context.cluster))?;
    let server = cluster.server.as_deref().unwrap_or_default();
    let server: Uri = server.parse().map_err(|e| format!("the server {server:?} is not a URL: {e}"))?;
    let mut config = Config::new(server);
    config.default_namespace = context.namespace.unwrap_or(config.default_namespace);
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or(false);
    config.disable_compression = cluster.disable_compression.unwrap_or(false);
    config.tls_server_name.clone_from(&cluster.tls_server_name);
    config.proxy_url = match cluster.proxy_url.as_deref().filter(|url| !url.is_empty()) {
        Some(url) => Some(url.parse().map_err(|e| format!("the proxy-url is not a URL: {e}"))?),
        None => proxies.of(&config.cluster_url)?,
    };
    // kubectl too allows a context without a user, or with an unknown one.
    let user = read.auth_infos.into_iter().find(|one| Some(&one.name) == context.user.as_ref());
    config.auth_info = user.and_then(|one| one.auth_info).unwrap_or_default();
    // The conversion reads the authority, from the kubeconfig or from a file, as PEM.
    let cluster = ExecAuthCluster::try_from(&cluster).map_err(|e| wrong(&e))?;
    config.root_cert = cluster.certificate_authority_data.as_deref().map(certificates).transpose()?;
    if let Some(exec) = config.auth_info.exec.as_mut().filter(|exec| exec.provide_cluster_info) {
        exec.cluster = Some(cluster);
    }
    Ok(config)
}

/// Returns the certificates of a PEM text.
fn certificates(pem: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let read = CertificateDer::pem_slice_iter(pem).map(|one| one.map(|one| one.to_vec()));
    let all: Vec<_> =
        read.collect::<Result<_, _>>().map_err(|e| format!("the certificate authority is no PEM: {e}"))?;
    if all.is_empty() {
        return Err("the certificate authority has no certificate".to_owned());
    }
    Ok(all)
}

/// Describes the fault of a kubeconfig. The text of kube for an unreadable line is not used, because it quotes the line
/// and its neighbours, including secrets.
pub(crate) fn wrong(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(e) => match e.location() {
            Some(at) => format!("line {}, column {} cannot be read", at.line(), at.column()),
            None => "the YAML cannot be read".to_owned(),
        },
        other => causes(other),
    }
}
