//! When a certificate ends: the one field of X.509 that is needed here. Pure; a certificate that is not understood has no
//! end, and whoever verifies it says what is wrong with it.

use base64::Engine as _;
use k8s_openapi::jiff::Timestamp;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
/// `[0] EXPLICIT Version`
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of validity of the first certificate in a PEM text.
pub(crate) fn end_of_pem(pem: &str) -> Option<Timestamp> {
    let body = pem.split_once("-----BEGIN CERTIFICATE-----")?.1.split_once("-----END CERTIFICATE-----")?.0;
    let compact: String = body.split_ascii_whitespace().collect();
    end_of_der(&base64::engine::general_purpose::STANDARD.decode(compact).ok()?)
}

/// RFC 5280 section 4.1: Certificate { tbsCertificate { [0] version?, serial, signature, issuer, validity { from, to } …
fn end_of_der(der: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = content(SEQUENCE, der)?;
    let (body, _) = content(SEQUENCE, certificate)?;
    let rest = content(VERSION, body).map_or(body, |(_, rest)| rest);
    let (_, rest) = content(INTEGER, rest)?;
    let (_, rest) = content(SEQUENCE, rest)?;
    let (_, rest) = content(SEQUENCE, rest)?;
    let (validity, _) = content(SEQUENCE, rest)?;
    let (_, _, to) = element(validity)?;
    let (tag, text, _) = element(to)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// Tag, content and what follows, of a DER element of at most 4 GiB.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Content and what follows, of an element with this tag.
fn content(wanted: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    element(der).filter(|(tag, ..)| *tag == wanted).map(|(_, content, rest)| (content, rest))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; two digits mean 1950 to 2049.
fn time(tag: u8, text: &str) -> Option<Timestamp> {
    let full = match tag {
        UTC_TIME => format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    let digits = full.strip_suffix('Z').filter(|digits| digits.len() == 14 && digits.is_ascii())?;
    let part = |from: usize, to: usize| &digits[from..to];
    let iso =
        [part(0, 4), "-", part(4, 6), "-", part(6, 8), "T", part(8, 10), ":", part(10, 12), ":", part(12, 14), "Z"];
    iso.concat().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl ca -startdate 20260102030405Z -enddate …`.
    const ENDS_2031: &str = include_str!("certificate/ends-2031.pem");
    const ENDS_2077: &str = include_str!("certificate/ends-2077.pem");

    #[test]
    fn both_forms_of_time_are_read() {
        assert_eq!(end_of_pem(ENDS_2031).expect("an end").to_string(), "2031-02-03T04:05:06Z");
        assert_eq!(end_of_pem(ENDS_2077).expect("an end").to_string(), "2077-02-03T04:05:06Z");
    }

    #[test]
    fn what_is_no_certificate_has_no_end() {
        assert_eq!(end_of_pem("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), None);
        let body = ENDS_2031.lines().filter(|line| !line.starts_with('-')).collect::<String>();
        let whole = base64::engine::general_purpose::STANDARD.decode(body).expect("base64");
        for length in 0..whole.len() {
            assert_eq!(end_of_der(&whole[..length]), None, "{length} bytes of it");
        }
    }
}
