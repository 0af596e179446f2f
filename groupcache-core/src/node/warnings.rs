//! Log lines of the stabilizer's warnings.

use crate::membership::stabilizer::Warning;

/// Logs a warning of the stabilizer.
pub(super) fn warn(warning: &Warning) {
    match warning {
        Warning::Held { missing, of } => tracing::warn!(
            missing,
            of,
            "discovery has lost most peers at once; each stays until two pings to it fail or discovery confirms it"
        ),
        Warning::SelfUnlisted { missing, of } => tracing::warn!(
            missing,
            of,
            "discovery no longer lists this node, which is alive; check its selector or labels; each missing peer stays \
             until two pings to it fail"
        ),
        Warning::UnlistedPeers { ids } => tracing::warn!(
            peers = ids.len(),
            ids = ?ids.iter().take(10).collect::<Vec<_>>(),
            "a peer is connected and not in discovery; compare the lists of both nodes, or its labels and named port"
        ),
        Warning::SelfNotListed => tracing::warn!(
            "discovery does not list this node: peers may not find it; compare id and address with the announced ones"
        ),
        Warning::TooManyPeers { left_out } => {
            tracing::warn!(left_out, "discovery lists more peers than are allowed; narrow the selection");
        }
        Warning::Refused { addresses, expected, why } => {
            tracing::warn!(?addresses, ?expected, ?why, "a listed peer is refused; the node goes on to dial it");
        }
        Warning::IgnoredGoodbye { id } => {
            tracing::warn!(
                %id,
                "ignored a departure notice: the peer still answers; check discovery for stale records"
            );
        }
        Warning::OldLife { id, incarnation, known } => {
            tracing::warn!(
                %id,
                ?incarnation,
                ?known,
                "ignored a stale incarnation of a peer: a newer one is connected; stop the earlier process"
            );
        }
    }
}
