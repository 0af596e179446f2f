//! Proxies of the environment: whether an API server is reached through one, by the rules of kubectl.

use std::{env, net::IpAddr};

use http::Uri;
use ipnet::IpNet;

/// The proxy variables of the environment.
#[derive(Debug, Default)]
pub(crate) struct Proxies {
    https: String,
    http: String,
    exempt: String,
}

impl Proxies {
    /// Reads `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, or the variables with their names in lower case.
    pub(crate) fn from_env() -> Self {
        let read = |name: &str| {
            let named = [name.to_owned(), name.to_ascii_lowercase()].into_iter().filter_map(|name| env::var(name).ok());
            named.map(|value| value.trim().to_owned()).find(|value| !value.is_empty()).unwrap_or_default()
        };
        Self { https: read("HTTPS_PROXY"), http: read("HTTP_PROXY"), exempt: read("NO_PROXY") }
    }

    /// Returns the proxy through which a server is reached. A server on this machine is reached directly.
    ///
    /// # Errors
    /// If the variable is not a URL. The text does not have the value, which may contain a password.
    pub(crate) fn of(&self, server: &Uri) -> Result<Option<Uri>, String> {
        let is_https = server.scheme_str() == Some("https");
        let (name, proxy) = if is_https { ("HTTPS_PROXY", &self.https) } else { ("HTTP_PROXY", &self.http) };
        let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        if proxy.is_empty() || server.host().is_none_or(|host| self.exempts(host, port)) {
            return Ok(None);
        }
        let url = if proxy.contains("://") { proxy.clone() } else { format!("http://{proxy}") };
        url.parse().map(Some).map_err(|e| format!("{name} is not a URL: {e}; write http://proxy.example.org:3128"))
    }

    /// Returns whether a host at a port is reached directly.
    fn exempts(&self, host: &str, port: u16) -> bool {
        let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
        let ip = host.parse().ok().map(|ip: IpAddr| ip.to_canonical());
        let is_local = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
        let exempt = self.exempt.to_ascii_lowercase();
        is_local || exempt.split(',').any(|entry| is_match(entry.trim(), &host, ip, port))
    }
}

/// Returns whether an entry of `NO_PROXY` matches a host: `*`, an address, a network, or a domain with its subdomains
/// (`example.org`) or without itself (`.example.org`, `*.example.org`). An address and a domain may have a port.
fn is_match(entry: &str, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(net) = entry.parse::<IpNet>() {
        return ip.is_some_and(|ip| net.contains(&ip));
    }
    let is_address = entry.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let (name, only) =
        entry.rsplit_once(':').filter(|_| !is_address).map_or((entry, None), |(name, at)| (name, Some(at)));
    if only.is_some_and(|only| only.parse() != Ok(port)) {
        return false;
    }
    let name = name.trim_matches(['[', ']']);
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(address.to_canonical()) == ip;
    }
    let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
    let (suffix, is_host_too) = name.strip_prefix('.').map_or((name, true), |suffix| (suffix, false));
    let is_below = || host.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'));
    !suffix.is_empty() && (is_host_too && host == suffix || is_below())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(exempt: &str, server: &str) -> Option<String> {
        let proxies = Proxies { https: "http://p:1".into(), http: "plain:2".into(), exempt: exempt.into() };
        proxies.of(&server.parse().unwrap()).unwrap().map(|uri| uri.to_string())
    }

    /// Checks the entries that exempt an API server, and those that do not.
    #[test]
    fn no_proxy_follows_the_rules_of_kubectl() {
        let exempt = [
            ("k8s.example.org", "https://k8s.example.org"),
            ("example.org", "https://k8s.example.org:6443"),
            ("Example.org,", "https://K8s.Example.Org:6443"),
            (" , .example.org , ", "https://k8s.example.org"),
            ("*.example.org", "https://k8s.example.org"),
            ("example.org:6443", "https://k8s.example.org:6443"),
            ("example.org:443", "https://k8s.example.org"),
            ("10.0.0.0/8", "https://10.1.2.3:6443"),
            ("10.1.2.3", "https://10.1.2.3:6443"),
            ("10.1.2.3:6443", "https://10.1.2.3:6443"),
            ("fd00::/8", "https://[fd00::1]:6443"),
            ("fd00::1", "https://[fd00::1]:6443"),
            ("[fd00::1]:6443", "https://[fd00::1]:6443"),
            ("[fd00::1]", "https://[fd00::1]:6443"),
            ("a,*", "https://k8s.example.org"),
            ("", "https://localhost:6443"),
            ("", "https://127.0.0.1:6443"),
            ("", "https://[::1]:6443"),
        ];
        for (list, server) in exempt {
            assert_eq!(proxy(list, server), None, "{list:?}, {server}");
        }
        let proxied = [
            ("", "https://k8s.example.org"),
            (",", "https://k8s.example.org"),
            (".", "https://k8s.example.org"),
            (":443", "https://k8s.example.org"),
            (".k8s.example.org", "https://k8s.example.org"),
            ("*.k8s.example.org", "https://k8s.example.org"),
            ("8s.example.org", "https://k8s.example.org"),
            ("example.org:443", "https://k8s.example.org:6443"),
            ("example.org:x", "https://k8s.example.org"),
            ("10.0.0.0/8", "https://11.1.2.3"),
            ("10.1.2.3:443", "https://10.1.2.3:6443"),
            ("p", "https://k8s.example.org"), // the host of the proxy
        ];
        for (list, server) in proxied {
            assert_eq!(proxy(list, server).as_deref(), Some("http://p:1/"), "{list:?}, {server}");
        }
    }

    /// Checks that the scheme of the server selects the proxy, that http is the default scheme of a proxy, and that an
    /// error does not have the value.
    #[test]
    fn scheme_of_server_selects_the_proxy() {
        assert_eq!(proxy("", "http://k8s.example.org").as_deref(), Some("http://plain:2/"));
        assert_eq!(Proxies::default().of(&"https://k8s.example.org".parse().unwrap()), Ok(None));
        let odd = Proxies { https: "http://me:passw0rd@ :1".into(), ..Proxies::default() };
        let error = odd.of(&"https://k8s.example.org".parse().unwrap()).unwrap_err();
        assert!(error.contains("HTTPS_PROXY") && !error.contains("passw0rd"), "{error}");
    }
}
