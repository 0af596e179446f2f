//! How a node comes by its certificates and keys, and what it does when they change.

#[cfg(feature = "tls")]
use std::{sync::Arc, time::Duration};

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
    error::{Error, Result},
    identity::Identity,
    transport::Security,
};

/// How often files with certificates and keys are read again. Certificates live for hours at least.
#[cfg(feature = "tls")]
const REREAD: Duration = Duration::from_secs(10);

/// What the builder was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) is_insecure: bool,
    #[cfg(feature = "tls")]
    pub(super) source: Option<Source>,
    /// More than one was given.
    #[cfg(feature = "tls")]
    pub(super) is_ambiguous: bool,
}

impl Wanted {
    /// What the node was told, or else what its environment says.
    pub(super) fn choose(self, identity: &Identity, is_mounted: bool) -> Result<Chosen> {
        let is_insecure = self.is_insecure || std::env::var("GROUPCACHE_INSECURE").is_ok_and(|v| v == "1");
        #[cfg(feature = "tls")]
        if let Some(source) = self.source(is_mounted)? {
            return Ok(Chosen::Tls(source));
        }
        #[cfg(not(feature = "tls"))]
        if std::env::var_os("GROUPCACHE_CLUSTER_KEY")
            .or_else(|| std::env::var_os("GROUPCACHE_CLUSTER_KEY_FILE"))
            .is_some()
        {
            return Err(Error::config(
                "a cluster key is set in the environment, and this program was built without TLS; build it with the \
                 feature `tls` of groupcache-discovery, or unset GROUPCACHE_CLUSTER_KEY and GROUPCACHE_CLUSTER_KEY_FILE",
            ));
        }
        check_exposure(identity, is_insecure, is_mounted)?;
        Ok(Chosen::Open { is_insecure })
    }

    #[cfg(feature = "tls")]
    fn source(self, is_mounted: bool) -> Result<Option<Source>> {
        if self.is_ambiguous || (self.is_insecure && self.source.is_some()) {
            return Err(Error::config(
                "cluster_key(...), mutual_tls(...) and insecure() exclude one another; keep one of them",
            ));
        }
        let source = match self.source {
            None => ClusterKey::from_env()?.map(Source::Key),
            source => source,
        };
        if self.is_insecure && source.is_some() {
            return Err(Error::config(
                "the program calls insecure(), and a cluster key is set in its environment; unset GROUPCACHE_CLUSTER_KEY and \
                 GROUPCACHE_CLUSTER_KEY_FILE, or take insecure() out",
            ));
        }
        match source {
            Some(Source::Key(_)) if is_mounted => Err(Error::config(
                "a peer service that is mounted shows the certificate of your server, and a cluster key would make another; \
                 use mutual_tls(...) with your server's certificate, or let the node listen itself",
            )),
            source => Ok(source),
        }
    }
}

/// What it will be, before anything is read.
pub(super) enum Chosen {
    Open {
        is_insecure: bool,
    },
    #[cfg(feature = "tls")]
    Tls(Source),
}

impl Chosen {
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "certificates are for an id"))]
    pub(super) async fn settle(self, identity: &Identity) -> Result<Security> {
        match self {
            Self::Open { is_insecure } => Ok(Security::Open { is_insecure }),
            #[cfg(feature = "tls")]
            Self::Tls(source) => {
                let me = TlsIdentity { cluster: identity.cluster().into(), id: identity.id() };
                Ok(Security::Tls(Arc::new(CredentialStore::new(source, me).await?)))
            }
        }
    }
}

/// A listener that others can reach must be asked for.
fn check_exposure(identity: &Identity, is_insecure: bool, is_mounted: bool) -> Result<()> {
    let listen = identity.listen();
    if is_mounted && !is_insecure {
        return Err(Error::config(
            "a peer service that is mounted in your server cannot tell peers from others without certificates; add \
             mutual_tls(...), or call .insecure() if nobody but peers reaches it",
        ));
    }
    if listen.ip().is_loopback() && !is_mounted {
        return Ok(());
    }
    if !is_insecure {
        return Err(Error::config(format!(
            "listening on {listen} would let everyone who reaches it read and fill the cache; give all nodes one \
             GROUPCACHE_CLUSTER_KEY or cluster_key(...), or certificates with mutual_tls(...), or, on a network that you \
             trust, GROUPCACHE_INSECURE=1 or insecure(); otherwise listen on loopback (NODE_IP=127.0.0.1)"
        )));
    }
    tracing::warn!(address = %listen, "peers are neither authenticated nor encrypted: insecure mode was asked for");
    Ok(())
}

/// Reads files again, and makes connections anew when what was read has changed. Runs until the node ends.
#[cfg(feature = "tls")]
pub(super) async fn keep_up_to_date(context: Arc<NodeContext>, keeper: Arc<CredentialStore>) {
    tokio::join!(reread(&keeper), renew(&context, &keeper));
}

#[cfg(feature = "tls")]
async fn reread(keeper: &CredentialStore) {
    let mut looks = interval(REREAD);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await; // the first is at once, and the node has just read them
    let mut complaint = None;
    loop {
        looks.tick().await;
        match keeper.reload_files().await {
            Ok(_) => complaint = None,
            Err(e) => {
                let text = e.to_string();
                if complaint.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "certificates and keys were not read anew; those in use stay");
                    complaint = Some(text);
                }
            }
        }
    }
}

/// Our own connections are made anew one by one; those that peers made retire at the door.
#[cfg(feature = "tls")]
async fn renew(context: &NodeContext, keeper: &CredentialStore) {
    let mut generations = keeper.generations();
    while generations.changed().await.is_ok() {
        let generation = *generations.borrow_and_update();
        tracing::info!(generation, "other certificates or keys are in use; connections are made anew with them");
        let links = context.links();
        let pause = RETIRE_WITHIN / (links.len() as u32 + 1);
        for link in links {
            // A share of each pause is random: nodes that read the same file must not all turn to one peer at once.
            sleep(pause.mul_f64((context.random() % 1000) as f64 / 1000.0)).await;
            link.renew();
            if generations.has_changed().unwrap_or(true) {
                break; // another change: all of them once more, and within the same time
            }
        }
    }
}
