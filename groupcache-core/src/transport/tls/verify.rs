//! Trust in certificates: a peer is let in if its certificate is of a trusted authority and carries a listed name.
//!
//! [`Trust`] is the verifier of both sides of a handshake. Authority and dates are checked by the TLS library.

use std::{sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error as TlsError, OtherError, RootCertStore,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use webpki::EndEntityCert;

use crate::transport::tls::{names::Name, provider};
use crate::{
    error::{Error, Kind, Result},
    transport::handshake::{Caller, HandshakeError, explain},
};

/// Time since 1970 at which the certificates of cluster keys of all releases are valid: the year 2000.
const UNDATED: Duration = Duration::from_secs(946_684_800);

/// Authorities that a node trusts, and the names of the peers that it lets in.
#[derive(Debug)]
pub(crate) struct Trust {
    roots: Arc<RootCertStore>,
    /// Names of the authorities, so that a peer with several certificates can choose one that this node trusts.
    authorities: Vec<DistinguishedName>,
    names: Vec<Name>,
    clients: Arc<dyn ClientCertVerifier>,
    /// Time at which certificates are checked instead of the present; `None` = the present.
    time: Option<UnixTime>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    pub(crate) fn new(roots: RootCertStore, names: Vec<Name>) -> Result<Self> {
        let (roots, authorities) = (Arc::new(roots.clone()), roots.subjects());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
        let clients = clients
            .map_err(|e| Error::caused(Kind::Config, "the authorities cannot be used; give CA certificates", e))?;
        let algorithms = provider().signature_verification_algorithms;
        Ok(Self { roots, authorities, names, clients, time: None, algorithms })
    }

    /// Checks certificates without their dates: at a time at which all certificates of cluster keys are valid.
    pub(crate) fn at_any_time(self) -> Self {
        Self { time: Some(UnixTime::since_unix_epoch(UNDATED)), ..self }
    }

    /// Returns the identity that a chain of certificates proves: the ids in those of its names that are let in. The
    /// caller has checked the authority and the dates.
    ///
    /// # Errors
    /// The reason why none of the names is let in.
    pub(crate) fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Caller, HandshakeError> {
        let shown = chain
            .first()
            .ok_or_else(|| HandshakeError::Certificate("the other side presented no certificate".to_owned()))?;
        let unreadable = |e| HandshakeError::Certificate(format!("the presented certificate cannot be read: {e}"));
        let shown = EndEntityCert::try_from(shown).map_err(unreadable)?;
        // webpki recommends its check of a single name, which knows no patterns. The check of the chain has verified
        // that the authority may issue certificates for each of these names.
        let dns: Vec<_> = shown.valid_dns_names().collect();
        let uris: Vec<_> = shown.valid_uri_names().collect();
        let by_dns = dns.iter().flat_map(|shown| self.names.iter().filter_map(|name| name.matches_dns(shown)));
        let by_uri = uris.iter().flat_map(|shown| self.names.iter().filter_map(|name| name.matches_uri(shown)));
        let matched: Vec<_> = by_dns.chain(by_uri).collect();
        if matched.is_empty() {
            let shown: Vec<_> = dns.into_iter().chain(uris).collect();
            let shown = if shown.is_empty() { "no DNS name and no URI".to_owned() } else { shown.join(", ") };
            return Err(HandshakeError::Name(format!(
                "the presented certificate is for {shown}, and peer_names lets none of that in"
            )));
        }
        let ids: Vec<_> = matched.into_iter().filter_map(|matched| matched.id).collect();
        Ok(Caller::Verified { ids: if ids.is_empty() { None } else { Some(ids) } })
    }

    /// Checks a chain that a client presented to the TLS server of the user, and returns the identity of the client.
    /// The server has checked that the client holds the private key.
    pub(crate) fn check_client(&self, chain: &[CertificateDer<'_>]) -> Result<Caller, HandshakeError> {
        let (shown, rest) = chain
            .split_first()
            .ok_or_else(|| HandshakeError::Certificate("the other side presented no certificate".to_owned()))?;
        let checked = self.clients.verify_client_cert(shown, rest, self.time.unwrap_or_else(UnixTime::now));
        checked.map_err(|e| explain(&e))?;
        self.identify(chain)
    }

    /// Checks the names only; the caller has checked the authority and the dates.
    fn check_names(&self, shown: &CertificateDer<'_>) -> Result<(), TlsError> {
        let refused = |trouble| TlsError::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(trouble))));
        self.identify(std::slice::from_ref(shown)).map(drop).map_err(refused)
    }
}

impl ServerCertVerifier for Trust {
    /// Checks authority, dates and names, and ignores the dialled name, which may be an address and identifies no peer.
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let parsed = ParsedCertificate::try_from(shown)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            rest,
            self.time.unwrap_or(now),
            self.algorithms.all,
        )?;
        self.check_names(shown)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(&self.authorities)
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verified = self.clients.verify_client_cert(shown, rest, self.time.unwrap_or(now))?;
        self.check_names(shown)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
