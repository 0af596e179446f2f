//! Fuzz target: content that may be written into a configuration or an environment.

use super::DiscoveryConfig;

/// Reads the bytes as JSON, as lines of `NAME=value` and as a list, the three ways in which a configuration is written.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let from_json = serde_json::from_str::<DiscoveryConfig>(&text).ok();
    let var = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next_back()
    };
    let from_vars = DiscoveryConfig::from_vars(var).ok();
    for config in [from_json, from_vars].into_iter().flatten() {
        // The configuration may name a provider that this build does not have, and the error reports that.
        let _ = config.provider();
        let _ = config.address();
        drop(format!("{config:?}"));
    }
    #[cfg(feature = "static")]
    if let Ok(list) = text.parse::<crate::list::Static>() {
        let addresses = |peer: &groupcache_core::discovery::Peer| peer.addresses().len();
        assert!(list.handle().peers().iter().all(|peer| addresses(peer) == 1));
    }
    #[cfg(feature = "dns")]
    let _ = text.parse::<crate::list::Dns>();
}

#[cfg(test)]
mod tests {
    #[test]
    fn configurations() {
        // Providers of files and of Kubernetes may start to read, and need a runtime for that.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _entered = runtime.enter();
        replay::replay("config", 20_000, super::config);
    }
}
