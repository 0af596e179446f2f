//! Connection to the API server: creates a client, and resolves the namespaces.

use std::{env, time::Duration};

use groupcache_core::{environment::Variables, files};
use http::header::{HeaderValue, USER_AGENT};
use kube::{
    Client, Config,
    client::AuthError,
    config::{ExecInteractiveMode, Kubeconfig},
};
use tokio::{runtime::Handle, sync::oneshot, time::timeout};

use crate::{
    api::{causes, short},
    kubeconfig::{self, wrong},
    options::{Access, Options},
    proxies::Proxies,
};

/// Name and version of this crate, by which the logs of the API server tell clients apart.
const AGENT: &str = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));

/// Maximum time to connect to the API server, TLS included. (kube: 30 s.)
const CONNECT: Duration = Duration::from_secs(5);
/// Maximum time for the credential program of a kubeconfig, which may send requests to a distant server.
const PROGRAM: Duration = Duration::from_secs(30);

/// Maximum time to read a kubeconfig and the files that it names.
const FILES: Duration = Duration::from_secs(2);

/// A client, and the namespaces that hold peers.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) namespaces: Vec<String>,
    pub(crate) cluster: Cluster,
}

/// Address of an API server and the authorities of its certificates. Another API server has other resource versions.
/// `None` if the application supplies the client, because then the address is unknown.
pub(crate) type Cluster = Option<(http::Uri, Option<Vec<Vec<u8>>>)>;

impl Options {
    /// Creates a client, without a request to the API server.
    ///
    /// Each run has its own client. Dropping the client closes its idle connections; otherwise their tasks would
    /// outlive the node by minutes. The client reads the token of the service account again at least every minute
    /// (kube's `TokenFile`), and the certificates of the authority too. A kubeconfig is read once per client. The
    /// provider creates the next client when the API server refuses the credentials of the old one or has not given a
    /// good answer for a minute, and reads a changed kubeconfig then.
    pub(crate) async fn connect(&self, program: &mut Program) -> Result<Connected, String> {
        let (client, cluster) = match &self.access.client {
            Some(client) => (client.clone(), None),
            None => {
                let mut config = self.access.config().await?;
                config.connect_timeout = Some(CONNECT);
                // Otherwise kube repeats a request that was refused for overload up to three times, unknown to the
                // back-off of this crate.
                config.default_retry = false;
                config.headers.push((USER_AGENT, HeaderValue::from_static(AGENT)));
                let cluster = (config.cluster_url.clone(), config.root_cert.clone());
                (program.client(config).await?, Some(cluster))
            }
        };
        let said = Variables::of_process().text("POD_NAMESPACE").map_err(|e| e.to_string())?;
        let own = said.unwrap_or_else(|| client.default_namespace().to_owned());
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

/// A client in creation that needs the credentials of a program. kube blocks its thread until the program ends.
///
/// The program runs on a thread of its own instead of a blocking task, because a runtime that ends would wait for such
/// a task forever.
#[derive(Default)]
pub(crate) struct Program(Option<oneshot::Receiver<Result<Client, String>>>);

impl Program {
    /// Creates a client, on a thread of its own if a program must run.
    async fn client(&mut self, mut config: Config) -> Result<Client, String> {
        let Some(exec) = &mut config.auth_info.exec else {
            if config.auth_info.auth_provider.is_none() && self.0.is_none() {
                return client(config);
            }
            return self.run(config).await;
        };
        // By default kube gives the program the standard input and the standard error of this process.
        exec.interactive_mode = Some(ExecInteractiveMode::Never);
        self.run(config).await
    }

    /// Waits for the running program, or starts one. A program that has not ended is never started a second time.
    async fn run(&mut self, config: Config) -> Result<Client, String> {
        let running = match &mut self.0 {
            Some(running) => running,
            none => none.insert(start(config)?),
        };
        let made = timeout(PROGRAM, running).await.map_err(|_| {
            let limit = PROGRAM.as_secs();
            format!("the credential program of the kubeconfig has not ended within {limit} s; run it by hand")
        })?;
        self.0 = None;
        made.unwrap_or_else(|_| {
            Err("the credential program of the kubeconfig has given no result; run it by hand".to_owned())
        })
    }
}

/// Starts a thread that creates a client. The thread runs in real time, outside of simulated time.
fn start(config: Config) -> Result<oneshot::Receiver<Result<Client, String>>, String> {
    let ((tell, made), runtime) = (oneshot::channel(), Handle::current());
    let thread = std::thread::Builder::new().name("kubeconfig".to_owned());
    let work = move || {
        let _inside = runtime.enter();
        let _ = tell.send(client(config));
    };
    thread.spawn(work).map_err(|e| {
        format!("cannot start a thread for the credential program of the kubeconfig ({e}); check the limit of threads")
    })?;
    Ok(made)
}

/// Creates a client, and describes a failure without secrets.
fn client(config: Config) -> Result<Client, String> {
    let program = config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone()).unwrap_or_default();
    Client::try_from(config).map_err(|e| match &e {
        // The text of kube is not used, because it has the whole output, including tokens, and the whole environment.
        kube::Error::Auth(AuthError::AuthExecRun { out, .. }) => {
            let said = short(&String::from_utf8_lossy(&out.stderr));
            format!(
                "the credential program {program} of the kubeconfig has failed ({}: {said}); run it by hand",
                out.status
            )
        }
        // The address of the proxy is left out, because it may contain a password.
        kube::Error::ProxyProtocolUnsupported { proxy_url } => {
            let scheme = proxy_url.scheme_str().unwrap_or_default();
            format!(
                "the proxy scheme {scheme:?} is not supported; use http, https or socks5 in proxy-url or HTTPS_PROXY"
            )
        }
        kube::Error::Auth(AuthError::AuthExecParse(_)) => {
            format!("the credential program {program} of the kubeconfig has not written credentials; run it by hand")
        }
        _ => format!(
            "cannot create a client of the API server ({}); check the kubeconfig and its certificates",
            causes(&e)
        ),
    })
}

impl Access {
    /// Returns whether clients are created from a kubeconfig, which is read again for each client.
    pub(crate) fn is_kubeconfig(&self) -> bool {
        self.client.is_none() && (self.kubeconfig.is_some() || !self.is_service_account())
    }

    fn is_service_account(&self) -> bool {
        self.context.is_none() && env::var_os("KUBERNETES_SERVICE_HOST").is_some()
    }

    /// Reads the configuration of a client. `Config::infer` is not used, because it prefers a kubeconfig that happens
    /// to be in a container to the service account.
    ///
    /// kube reads the files of a configuration on the thread of its caller. A thread of its own bounds the time of a file
    /// that does not answer, such as a pipe.
    async fn config(&self) -> Result<Config, String> {
        let this = self.clone();
        let path = self.kubeconfig.clone().unwrap_or_else(|| "kubeconfig".into());
        let read = files::detached(&path, FILES, move || this.read_config());
        read.await.map_err(|e| {
            format!("the files of the kubeconfig or of the service account cannot be read ({e}); check KUBECONFIG")
        })?
    }

    fn read_config(&self) -> Result<Config, String> {
        let context = self.context.as_deref();
        if let Some(path) = &self.kubeconfig {
            let unusable = |why: &str| format!("{} is not a usable kubeconfig ({why}); check the path", path.display());
            let read = Kubeconfig::read_from(path).map_err(|e| unusable(&wrong(&e)))?;
            return kubeconfig::config(read, context, &Proxies::from_env()).map_err(|why| outside(&why));
        }
        if self.is_service_account() {
            return Config::incluster().map_err(|e| {
                format!(
                    "the service account of this pod cannot be used ({}); set automountServiceAccountToken: true",
                    causes(&e)
                )
            });
        }
        let read = Kubeconfig::read().map_err(|e| outside(&wrong(&e)))?;
        kubeconfig::config(read, context, &Proxies::from_env()).map_err(|why| outside(&why))
    }
}

/// Describes why a kubeconfig cannot be used.
fn outside(why: &str) -> String {
    format!("the kubeconfig cannot be used ({why}); check KUBECONFIG, the file and the context")
}
