//! A client of the API server, and the namespaces that are meant.

use std::{env, time::Duration};

use kube::{
    Client, Config,
    client::AuthError,
    config::{ExecInteractiveMode, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use crate::{
    api::{causes, short},
    options::{Access, Options},
};

/// How long a connection to the API server may take, TLS included. (kube: 30 s.)
const CONNECT: Duration = Duration::from_secs(5);
/// How long the program may take that a kubeconfig names for credentials: it may ask a server far away.
const PROGRAM: Duration = Duration::from_secs(30);

/// A client, and the namespaces to look in.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) namespaces: Vec<String>,
    pub(crate) cluster: Cluster,
}

/// The address of an API server, and who signs its certificates: another one has other versions. Nothing is known of
/// that where a client is given.
pub(crate) type Cluster = Option<(http::Uri, Option<Vec<Vec<u8>>>)>;

impl Options {
    /// Makes a client; nothing is asked of the API server yet.
    ///
    /// Each run has its own: dropping it closes the connections that it keeps for later, whose tasks would outlive
    /// the node by minutes. It reads the token of the service account again every minute at least (kube's
    /// `TokenFile`), and the certificates of the authority too; a kubeconfig is read once, so one that has changed is
    /// read for the next client, which is made when the API server no longer knows the old one's credentials, or has
    /// not given a good answer for a minute.
    pub(crate) async fn connect(&self, program: &mut Program) -> Result<Connected, String> {
        let (client, cluster) = match &self.access.client {
            Some(client) => (client.clone(), None),
            None => {
                let mut config = self.access.config().await?;
                config.connect_timeout = Some(CONNECT);
                // kube would send a request that was refused for overload up to three times more by itself, unknown
                // to our own back-off.
                config.default_retry = false;
                let cluster = (config.cluster_url.clone(), config.root_cert.clone());
                (program.client(config).await?, Some(cluster))
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
        Ok(Connected { client, namespaces, cluster })
    }
}

/// What is wrong with a kubeconfig. What kube says of a line that it cannot read has the line itself, and those
/// around it, with whatever secrets they hold.
fn wrong(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::Parse(e) => match e.location() {
            Some(at) => format!("line {}, column {} cannot be read", at.line(), at.column()),
            None => "it cannot be read".to_owned(),
        },
        other => causes(other),
    }
}

/// A client that is being made, if a program must be run for that: kube waits for it in place.
///
/// It is a thread of its own and no blocking task, since a runtime that ends would wait for such a task for ever.
#[derive(Default)]
pub(crate) struct Program(Option<oneshot::Receiver<Result<Client, String>>>);

impl Program {
    async fn client(&mut self, mut config: Config) -> Result<Client, String> {
        let Some(exec) = &mut config.auth_info.exec else {
            if config.auth_info.auth_provider.is_none() && self.0.is_none() {
                return client(config);
            }
            return self.run(config).await;
        };
        // By default it would read what is typed to this process, and write between its lines.
        exec.interactive_mode = Some(ExecInteractiveMode::Never);
        self.run(config).await
    }

    /// One that has not ended is not run a second time beside it.
    async fn run(&mut self, config: Config) -> Result<Client, String> {
        let running = match &mut self.0 {
            Some(running) => running,
            none => none.insert(start(config)?),
        };
        let made = timeout(PROGRAM, running).await.map_err(|_| {
            let limit = PROGRAM.as_secs();
            format!(
                "the program of the kubeconfig that gives credentials has not ended within {limit} s; run it by hand"
            )
        })?;
        self.0 = None;
        made.unwrap_or_else(|_| Err("the program of the kubeconfig that gives credentials is lost".to_owned()))
    }
}

/// Outside of simulated time, as any program is.
fn start(config: Config) -> Result<oneshot::Receiver<Result<Client, String>>, String> {
    let ((tell, made), runtime) = (oneshot::channel(), Handle::current());
    let thread = std::thread::Builder::new().name("kubeconfig".to_owned());
    let work = move || {
        let _inside = runtime.enter();
        let _ = tell.send(client(config));
    };
    thread.spawn(work).map_err(|e| format!("no thread can be started for the program of the kubeconfig ({e})"))?;
    Ok(made)
}

fn client(config: Config) -> Result<Client, String> {
    let program = config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone()).unwrap_or_default();
    Client::try_from(config).map_err(|e| match &e {
        // What kube says of it has all that was written, tokens among it, and the whole environment.
        kube::Error::Auth(AuthError::AuthExecRun { out, .. }) => {
            let said = short(&String::from_utf8_lossy(&out.stderr));
            format!("{program}, which the kubeconfig names for credentials, has failed ({}: {said})", out.status)
        }
        // Its address may have a password in it.
        kube::Error::ProxyProtocolUnsupported { proxy_url } => {
            let scheme = proxy_url.scheme_str().unwrap_or_default();
            format!("{scheme:?} is no kind of proxy; give the kubeconfig, or HTTPS_PROXY, one of http, https or socks5")
        }
        kube::Error::Auth(AuthError::AuthExecParse(_)) => {
            format!("{program}, which the kubeconfig names for credentials, has written something else")
        }
        _ => format!(
            "no client of the API server can be made ({}); check the kubeconfig, and its certificates",
            causes(&e)
        ),
    })
}

/// What the downward API says, or else what the service account or the kubeconfig does.
fn own_namespace(said: Option<String>, default: &str) -> String {
    let said = said.as_deref().map(str::trim).filter(|name| !name.is_empty());
    said.unwrap_or(default).to_owned()
}

impl Access {
    /// Whether a kubeconfig says how the API server is reached, which is read for each client.
    pub(crate) fn is_kubeconfig(&self) -> bool {
        self.client.is_none() && (self.kubeconfig.is_some() || !self.is_service_account())
    }

    fn is_service_account(&self) -> bool {
        self.context.is_none() && env::var_os("KUBERNETES_SERVICE_HOST").is_some()
    }

    /// Not `Config::infer`: it prefers a kubeconfig that happens to lie in a container to the service account.
    async fn config(&self) -> Result<Config, String> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let outside = |e: &KubeconfigError| {
            format!("the kubeconfig cannot be used ({}); check KUBECONFIG, the file and the context", wrong(e))
        };
        if let Some(path) = &self.kubeconfig {
            let read = Kubeconfig::read_from(path)
                .map_err(|e| format!("{} is no kubeconfig ({}); check the path", path.display(), wrong(&e)))?;
            return Config::from_custom_kubeconfig(read, &options).await.map_err(|e| outside(&e));
        }
        if self.is_service_account() {
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
