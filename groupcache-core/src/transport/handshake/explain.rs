//! Explanations of TLS errors for the two nodes, in words that say what to change.

use rustls::{AlertDescription as Alert, CertificateError, Error as TlsError, InvalidMessage, OtherError};

use crate::transport::handshake::error::HandshakeError;

/// Returns the handshake error of an error of TLS.
pub(crate) fn explain(error: &TlsError) -> HandshakeError {
    match error {
        TlsError::InvalidCertificate(e) => certificate(e),
        TlsError::NoCertificatesPresented => HandshakeError::Certificate("it shows no certificate".to_owned()),
        TlsError::AlertReceived(alert) => alerted(*alert),
        TlsError::PeerIncompatible(why) => {
            HandshakeError::OtherTls(format!("it speaks another TLS; nodes speak 1.3 and nothing older ({why:?})"))
        }
        TlsError::NoApplicationProtocol => HandshakeError::OtherTls("it does not offer HTTP/2 (ALPN h2)".to_owned()),
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
            HandshakeError::OneSideIsPlain { they_speak_tls: false }
        }
        other => HandshakeError::Broken(other.to_string()),
    }
}

fn certificate(error: &CertificateError) -> HandshakeError {
    use CertificateError as C;
    match error {
        C::Other(OtherError(inner)) => match inner.downcast_ref::<HandshakeError>() {
            Some(trouble) => trouble.clone(),
            None => HandshakeError::Certificate(format!("its certificate is not accepted: {inner}")),
        },
        C::Expired | C::ExpiredContext { .. } => HandshakeError::Certificate(format!("its certificate has expired ({error})")),
        C::NotValidYet | C::NotValidYetContext { .. } => {
            HandshakeError::Certificate(format!("its certificate is not valid yet ({error}); compare the clocks"))
        }
        C::BadSignature => HandshakeError::Certificate(
            "its certificate is of an authority that has the name of one which this node trusts, and another key; was the \
             CA made anew?"
                .to_owned(),
        ),
        C::UnknownIssuer => HandshakeError::Certificate(
            "its certificate is of an authority that this node does not know: another CA, another cluster key, or another \
             cluster name"
                .to_owned(),
        ),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => HandshakeError::Certificate(format!(
            "its certificate is not for this use ({error}); a peer is both sides: issue it for serverAuth and clientAuth"
        )),
        other => HandshakeError::Certificate(format!("its certificate is not accepted: {other}")),
    }
}

/// Returns the handshake error of an alert of the other side.
fn alerted(alert: Alert) -> HandshakeError {
    let refuses = |why: &str| HandshakeError::RefusesUs(format!("{why} (its log says more)"));
    match alert {
        Alert::CertificateExpired => refuses("it finds our certificate expired, or not valid yet"),
        Alert::UnknownCA => refuses(
            "it does not know the authority of our certificate: another CA, another cluster key, or another cluster name",
        ),
        Alert::CertificateRequired => refuses("it wants a certificate and got none"),
        Alert::CertificateUnknown => {
            refuses("no name of our certificate is among its peer_names, or it does not accept it for another reason")
        }
        Alert::DecryptError => {
            refuses("our certificate is of an authority of a name that it trusts, and of another key")
        }
        Alert::UnsupportedCertificate => {
            refuses("our certificate is not for this use; issue it for serverAuth and clientAuth")
        }
        Alert::BadCertificate | Alert::CertificateRevoked | Alert::AccessDenied => {
            refuses("it does not accept our certificate")
        }
        Alert::ProtocolVersion => HandshakeError::OtherTls("it speaks no TLS 1.3".to_owned()),
        Alert::NoApplicationProtocol => HandshakeError::OtherTls("it does not offer HTTP/2 (ALPN h2)".to_owned()),
        other => HandshakeError::Broken(format!("it ended the handshake with the alert {other:?}")),
    }
}
