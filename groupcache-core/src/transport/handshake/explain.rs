//! Translation of the errors of the TLS library into reasons that name the setting to change.

use rustls::{AlertDescription as Alert, CertificateError, Error as TlsError, InvalidMessage, OtherError};

use crate::transport::handshake::error::HandshakeError;

/// Returns the reason that an error of TLS stands for.
pub(crate) fn explain(error: &TlsError) -> HandshakeError {
    match error {
        TlsError::InvalidCertificate(e) => certificate(e),
        TlsError::NoCertificatesPresented => {
            HandshakeError::Certificate("the other side presented no certificate".to_owned())
        }
        TlsError::AlertReceived(alert) => alerted(*alert),
        TlsError::PeerIncompatible(why) => {
            HandshakeError::OtherTls(format!("the other side speaks another TLS; nodes speak TLS 1.3 only ({why:?})"))
        }
        TlsError::NoApplicationProtocol => {
            HandshakeError::OtherTls("the other side does not offer HTTP/2 (ALPN h2)".to_owned())
        }
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
            HandshakeError::OneSideIsPlain { they_speak_tls: false }
        }
        other => HandshakeError::Broken(other.to_string()),
    }
}

/// Returns the reason for the rejection of a certificate by this node.
fn certificate(error: &CertificateError) -> HandshakeError {
    use CertificateError as C;
    match error {
        C::Other(OtherError(inner)) => match inner.downcast_ref::<HandshakeError>() {
            Some(trouble) => trouble.clone(),
            None => HandshakeError::Certificate(format!("the presented certificate is not accepted: {inner}")),
        },
        C::Expired | C::ExpiredContext { .. } => HandshakeError::Certificate(format!(
            "the presented certificate has expired ({error}); renew it, or compare the clocks"
        )),
        C::NotValidYet | C::NotValidYetContext { .. } => HandshakeError::Certificate(format!(
            "the presented certificate is not valid yet ({error}); compare the clocks"
        )),
        C::BadSignature => HandshakeError::Certificate(
            "the presented certificate is of an authority with the name of one that this node trusts, and with another \
             key; compare the CA files, because the CA may have been made anew"
                .to_owned(),
        ),
        C::UnknownIssuer => HandshakeError::Certificate(
            "the presented certificate is of an authority that this node does not know: another CA, another cluster \
             key, or another cluster name"
                .to_owned(),
        ),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => HandshakeError::Certificate(format!(
            "the presented certificate is not for this use ({error}); issue it for serverAuth and clientAuth, because \
             a peer is server and client"
        )),
        other => HandshakeError::Certificate(format!("the presented certificate is not accepted: {other}")),
    }
}

/// Returns the reason that the other side has sent as an alert.
fn alerted(alert: Alert) -> HandshakeError {
    let refuses = |why: &str| HandshakeError::RefusesUs(format!("{why}; see the log of the other side"));
    match alert {
        Alert::CertificateExpired => {
            refuses("the other side finds the certificate of this node expired, or not valid yet")
        }
        Alert::UnknownCA => refuses(
            "the other side does not know the authority of this node's certificate: another CA, another cluster key, \
             or another cluster name",
        ),
        Alert::CertificateRequired => refuses("the other side requires a certificate and received none"),
        Alert::CertificateUnknown => refuses(
            "no name of this node's certificate is among the peer_names of the other side, or the other side does not \
             accept the certificate for another reason",
        ),
        Alert::DecryptError => refuses(
            "this node's certificate is of an authority with the name of one that the other side trusts, and with \
             another key",
        ),
        Alert::UnsupportedCertificate => {
            refuses("this node's certificate is not for this use; issue it for serverAuth and clientAuth")
        }
        Alert::BadCertificate | Alert::CertificateRevoked | Alert::AccessDenied => {
            refuses("the other side does not accept this node's certificate")
        }
        Alert::ProtocolVersion => HandshakeError::OtherTls("the other side does not speak TLS 1.3".to_owned()),
        Alert::NoApplicationProtocol => {
            HandshakeError::OtherTls("the other side does not offer HTTP/2 (ALPN h2)".to_owned())
        }
        other => HandshakeError::Broken(format!("the other side ended the handshake with the alert {other:?}")),
    }
}
