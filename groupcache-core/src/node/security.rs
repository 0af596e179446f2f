//! The security of a node: the choice between certificates, a cluster key and insecure mode, and the reload of
//! certificates and keys.
//!
//! A node that listens beyond loopback needs one of the three, otherwise its start fails. Connections with replaced
//! certificates or keys are renewed one by one.

use std::sync::Arc;
#[cfg(feature = "tls")]
use std::time::Duration;

#[cfg(feature = "tls")]
use tokio::time::{MissedTickBehavior, interval, sleep};

#[cfg(feature = "tls")]
use crate::{
    context::NodeContext,
    transport::{
        RETIRE_WITHIN,
        tls::{ClusterKey, CredentialStore, Source, TlsIdentity},
    },
};
use crate::{
    environment::Variables,
    error::{Error, Result},
    identity::Identity,
    runtime::stats::NodeCounters,
    transport::Security,
};

/// Interval at which files with certificates and keys are read again. Certificates are valid for hours at least.
#[cfg(feature = "tls")]
const RELOAD: Duration = Duration::from_secs(10);

/// The security settings of a builder.
#[derive(Clone, Debug, Default)]
pub(super) struct SecuritySettings {
    pub(super) is_insecure: bool,
    #[cfg(feature = "tls")]
    pub(super) source: Option<Source>,
    /// Whether more than one source was set.
    #[cfg(feature = "tls")]
    pub(super) is_ambiguous: bool,
}

impl SecuritySettings {
    /// Returns the security of the node, from the settings or otherwise from the environment.
    pub(super) fn choose(self, vars: &Variables<'_>, identity: &Identity, is_mounted: bool) -> Result<ChosenSecurity> {
        let is_insecure = self.is_insecure || vars.switch("GROUPCACHE_INSECURE")?;
        #[cfg(feature = "tls")]
        if let Some(source) = self.source(vars, is_mounted)? {
            return Ok(ChosenSecurity::Tls(source));
        }
        #[cfg(not(feature = "tls"))]
        if vars.first(&["GROUPCACHE_CLUSTER_KEY", "GROUPCACHE_CLUSTER_KEY_FILE"])?.is_some() {
            return Err(Error::config(
                "a cluster key is set in the environment, and this program was built without TLS; build it with the \
                 feature `tls` of groupcache-discovery, or unset GROUPCACHE_CLUSTER_KEY and \
                 GROUPCACHE_CLUSTER_KEY_FILE",
            ));
        }
        check_exposure(identity, is_insecure, is_mounted)?;
        Ok(ChosenSecurity::Open { is_insecure })
    }

    #[cfg(feature = "tls")]
    fn source(self, vars: &Variables<'_>, is_mounted: bool) -> Result<Option<Source>> {
        if self.is_ambiguous || (self.is_insecure && self.source.is_some()) {
            return Err(Error::config(
                "cluster_key(...), mutual_tls(...) and insecure() exclude one another; keep one of them",
            ));
        }
        let source = match self.source {
            None => ClusterKey::from_variables(vars)?.map(Source::Key),
            source => source,
        };
        if self.is_insecure && source.is_some() {
            return Err(Error::config(
                "the program calls insecure(), and a cluster key is set in its environment; unset \
                 GROUPCACHE_CLUSTER_KEY and GROUPCACHE_CLUSTER_KEY_FILE, or remove the call of insecure()",
            ));
        }
        match source {
            Some(Source::Key(_)) if is_mounted => Err(Error::config(
                "a mounted peer service presents the certificate of your server, and a cluster key needs another; use \
                 mutual_tls(...) with the certificate of your server, or let the node listen itself",
            )),
            Some(Source::Key(key)) => Ok(Some(Source::Key(key.with_setting_of(vars)?))),
            source => Ok(source),
        }
    }
}

/// The chosen security, before any file is read.
pub(super) enum ChosenSecurity {
    Open {
        is_insecure: bool,
    },
    #[cfg(feature = "tls")]
    Tls(Source),
}

impl ChosenSecurity {
    #[cfg_attr(
        not(feature = "tls"),
        expect(unused_variables, reason = "certificates are for an id, and old keys are counted")
    )]
    /// Reads certificates and keys, if there are any.
    pub(super) async fn resolve(self, identity: &Identity, counters: &Arc<NodeCounters>) -> Result<Security> {
        match self {
            Self::Open { is_insecure } => Ok(Security::Open { is_insecure }),
            #[cfg(feature = "tls")]
            Self::Tls(source) => {
                let me = TlsIdentity { cluster: identity.cluster().into(), id: identity.id() };
                Ok(Security::Tls(Arc::new(CredentialStore::new(source, me, Arc::clone(counters)).await?)))
            }
        }
    }
}

/// Checks that a node without TLS has a listener of its own on loopback, or that insecure mode is on.
fn check_exposure(identity: &Identity, is_insecure: bool, is_mounted: bool) -> Result<()> {
    let listen = identity.listen();
    if is_mounted && !is_insecure {
        return Err(Error::config(
            "a mounted peer service cannot tell peers from other clients without certificates; add mutual_tls(...), or \
             call insecure() if only peers reach your server",
        ));
    }
    if listen.ip().is_loopback() && !is_mounted {
        return Ok(());
    }
    if !is_insecure {
        return Err(Error::config(format!(
            "listening on {listen} would let every client that reaches it read and fill the cache; give all nodes one \
             GROUPCACHE_CLUSTER_KEY or cluster_key(...), or certificates with mutual_tls(...), or, on a network that \
             you trust, GROUPCACHE_INSECURE=1 or insecure(); otherwise listen on loopback (NODE_IP=127.0.0.1)"
        )));
    }
    tracing::warn!(
        address = %listen,
        "peers are neither authenticated nor encrypted: insecure mode is on; use it on a trusted network only"
    );
    Ok(())
}

/// Reloads certificates and keys, and renews connections when they have changed. Runs until the node ends.
#[cfg(feature = "tls")]
pub(super) async fn reload_credentials(context: Arc<NodeContext>, credentials: Arc<CredentialStore>) {
    tokio::join!(reload_files(&credentials), renew_connections(&context, &credentials));
}

#[cfg(feature = "tls")]
async fn reload_files(credentials: &CredentialStore) {
    let mut ticks = interval(RELOAD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // the first tick is at once, and the node has just read the files
    let mut last_warning = None;
    loop {
        ticks.tick().await;
        match credentials.reload_files().await {
            Ok(_) => last_warning = None,
            Err(e) => {
                let text = e.to_string();
                if last_warning.as_ref() != Some(&text) {
                    tracing::warn!(
                        error = %text,
                        "certificates and keys could not be reloaded; those in use stay; repair the file"
                    );
                    last_warning = Some(text);
                }
            }
        }
    }
}

/// Renews the connections that this node made, one by one. The listener retires those that peers made.
#[cfg(feature = "tls")]
async fn renew_connections(context: &NodeContext, credentials: &CredentialStore) {
    let mut generations = credentials.generations();
    while generations.changed().await.is_ok() {
        let generation = *generations.borrow_and_update();
        tracing::info!(generation, "new certificates or keys are in use; connections are renewed with them");
        let links = context.links();
        let pause = RETIRE_WITHIN / (links.len() as u32 + 1);
        for link in links {
            // Each pause is random, so that nodes which read the same file do not all connect to one peer at once.
            sleep(pause.mul_f64((context.random() % 1000) as f64 / 1000.0)).await;
            link.renew();
            if generations.has_changed().unwrap_or(true) {
                break; // after another change all connections are renewed again, within the same time
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(name: &'static str, value: &'static str) -> Result<ChosenSecurity> {
        let vars = Variables::from_fn(move |asked| (asked == name).then(|| value.to_owned()));
        SecuritySettings::default().choose(&vars, &Identity::new(([0, 0, 0, 0], 0).into()), false)
    }

    #[test]
    fn insecure_mode_is_a_switch_as_all_others() {
        for on in ["1", "true", "1\r", "YES"] {
            let chosen = choose("GROUPCACHE_INSECURE", on);
            assert!(matches!(chosen, Ok(ChosenSecurity::Open { is_insecure: true })), "{on:?}");
        }
        for (value, named) in [("0", "listening on"), ("", "listening on"), ("maybe", "GROUPCACHE_INSECURE is")] {
            let Err(error) = choose("GROUPCACHE_INSECURE", value) else { panic!("{value:?} is not insecure") };
            assert!(error.is_config() && error.to_string().contains(named), "{error}");
        }
    }
}
