//! A client of the API server, and the namespaces that are meant.

use std::{env, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{
    api::causes,
    options::{Access, Options},
};

/// How long a connection to the API server may take, TLS included. (kube: 30 s.)
const CONNECT: Duration = Duration::from_secs(5);

/// A client, and the namespaces to look in.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) namespaces: Vec<String>,
}

impl Options {
    /// Makes a client; nothing is asked of the API server yet.
    ///
    /// Each run has its own: dropping it closes the connections that it keeps for later, whose tasks would outlive
    /// the node by minutes. It reads the token of the service account again every minute at least (kube's
    /// `TokenFile`), and the certificates of the authority too; a kubeconfig is read once, so one that has changed is
    /// read for the next client, which is made when the API server no longer knows the old one's credentials.
    pub(crate) async fn connect(&self) -> Result<Connected, String> {
        let client = match &self.access.client {
            Some(client) => client.clone(),
            None => {
                let mut config = self.access.config().await?;
                config.connect_timeout = Some(CONNECT);
                // kube would send a request that was refused for overload up to three times more by itself, unknown
                // to our own back-off.
                config.default_retry = false;
                Client::try_from(config).map_err(|e| {
                    format!("no client of the API server can be made ({}); check its certificates", causes(&e))
                })?
            }
        };
        let own = own_namespace(env::var("POD_NAMESPACE").ok(), client.default_namespace());
        let mut namespaces: Vec<String> = Vec::new();
        for name in &self.namespaces {
            let name = if name.is_empty() { &own } else { name };
            if !namespaces.contains(name) {
                namespaces.push(name.clone());
            }
        }
        Ok(Connected { client, namespaces })
    }
}

/// What the downward API says, or else what the service account or the kubeconfig does.
fn own_namespace(said: Option<String>, default: &str) -> String {
    let said = said.as_deref().map(str::trim).filter(|name| !name.is_empty());
    said.unwrap_or(default).to_owned()
}

impl Access {
    /// Not `Config::infer`: it prefers a kubeconfig that happens to lie in a container to the service account.
    async fn config(&self) -> Result<Config, String> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let outside = |e: &dyn std::error::Error| {
            format!("the kubeconfig cannot be used ({}); check KUBECONFIG, the file and the context", causes(e))
        };
        if let Some(path) = &self.kubeconfig {
            let read = Kubeconfig::read_from(path)
                .map_err(|e| format!("{} is no kubeconfig ({}); check the path", path.display(), causes(&e)))?;
            return Config::from_custom_kubeconfig(read, &options).await.map_err(|e| outside(&e));
        }
        let is_inside = env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        if is_inside && self.context.is_none() {
            return Config::incluster().map_err(|e| {
                format!(
                    "the service account of this pod cannot be used ({}); set automountServiceAccountToken: true",
                    causes(&e)
                )
            });
        }
        Config::from_kubeconfig(&options).await.map_err(|e| outside(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_downward_api_names_the_namespace_before_the_service_account_does() {
        assert_eq!(own_namespace(Some("prod ".to_owned()), "other"), "prod");
        assert_eq!(own_namespace(Some(" ".to_owned()), "other"), "other");
        assert_eq!(own_namespace(None, "other"), "other");
    }
}
