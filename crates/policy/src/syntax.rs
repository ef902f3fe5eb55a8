//! The spelling of names, labels, ports and CIDR blocks, as the Kubernetes API server checks it
//! (Kubernetes documentation, "Object Names and IDs" and "Labels and Selectors").
//!
//! Every function returns what is wrong and how to put it right, without place or field.

use std::net::IpAddr;

use ipnet::IpNet;

/// What is wrong with a value, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

const fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|&b| is_lower_alphanumeric(b) || b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            // A subdomain's labels have no limit of their own in the API server.
            !label.is_empty()
                && label.bytes().all(|b| is_lower_alphanumeric(b) || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// A namespace name.
pub(crate) fn namespace(text: &str) -> Result<(), Fault> {
    if is_dns_label(text) {
        return Ok(());
    }
    Err(Fault::new(format!("`{text}` is not a namespace name"))
        .hint("use at most 63 lower-case letters, digits and `-`, not at either end"))
}

/// An object name.
pub(crate) fn object_name(text: &str) -> Result<(), Fault> {
    if is_dns_subdomain(text) {
        return Ok(());
    }
    Err(Fault::new(format!("`{text}` is not an object name")).hint(
        "use at most 253 lower-case letters, digits, `-` and `.`, beginning and ending with a \
         letter or digit",
    ))
}

fn is_qualified_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

/// A label or annotation key: `name` or `prefix/name`.
pub(crate) fn label_key(text: &str) -> Result<(), Fault> {
    let valid = match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_qualified_part(name),
        None => is_qualified_part(text),
    };
    if valid {
        return Ok(());
    }
    Err(Fault::new(format!("`{text}` is not a label key")).hint(
        "use `name` or `dns.prefix/name`, the name with at most 63 letters, digits, `-`, `_` \
         and `.`, beginning and ending with a letter or digit",
    ))
}

/// A label value; the empty value is one.
pub(crate) fn label_value(text: &str) -> Result<(), Fault> {
    if text.is_empty() || is_qualified_part(text) {
        return Ok(());
    }
    Err(Fault::new(format!("`{text}` is not a label value")).hint(
        "use at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter \
         or digit",
    ))
}

/// The name of a container port (IANA service name).
pub(crate) fn port_name(text: &str) -> Result<(), Fault> {
    let bytes = text.as_bytes();
    let valid = (1..=15).contains(&bytes.len())
        && bytes.iter().all(|&b| is_lower_alphanumeric(b) || b == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--");
    if valid {
        return Ok(());
    }
    let fault = Fault::new(format!("`{text}` is not a port name"));
    Err(match text.parse::<u16>() {
        Ok(number) => fault.hint(format!("write the number without quotes: {number}")),
        Err(_) => fault.hint(
            "use at most 15 lower-case letters, digits and single `-`, with at least one letter",
        ),
    })
}

/// A port number.
pub(crate) fn port_number(number: i64) -> Result<u16, Fault> {
    u16::try_from(number)
        .ok()
        .filter(|&port| port != 0)
        .ok_or_else(|| Fault::new(format!("port {number} is out of range")).hint("use 1 to 65535"))
}

/// A CIDR block. Host bits are accepted and mean the network they lie in.
pub(crate) fn cidr(text: &str) -> Result<IpNet, Fault> {
    let Some((address, length)) = text.split_once('/') else {
        let fault = Fault::new(format!("`{text}` is not a CIDR block"));
        return Err(match text.parse::<IpAddr>() {
            Ok(address) => {
                let full = IpNet::from(address).prefix_len();
                fault.hint(format!("write `{text}/{full}` for this one address"))
            }
            Err(_) => fault.hint("write it as `192.0.2.0/24` or `2001:db8::/32`"),
        });
    };
    let address: IpAddr = address.parse().map_err(|_| {
        Fault::new(format!(
            "`{text}` is not a CIDR block: `{address}` is no address"
        ))
        .hint("write it as `192.0.2.0/24` or `2001:db8::/32`")
    })?;
    let most = IpNet::from(address).prefix_len();
    let canonical = !length.is_empty()
        && length.bytes().all(|b| b.is_ascii_digit())
        && (length == "0" || !length.starts_with('0'));
    let length = length
        .parse::<u8>()
        .ok()
        .filter(|&length| canonical && length <= most)
        .ok_or_else(|| {
            Fault::new(format!(
                "`{text}` is not a CIDR block: `{length}` is no prefix length"
            ))
            .hint(format!("use 0 to {most}"))
        })?;
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        let hint = match length.checked_sub(96) {
            Some(length) => format!("write `{v4}/{length}`"),
            None => "write the IPv4 block".to_owned(),
        };
        return Err(Fault::new(format!(
            "`{text}` is an IPv4-mapped IPv6 block, which no packet ever matches"
        ))
        .hint(hint));
    }
    IpNet::new(address, length)
        .map(|net| net.trunc())
        .map_err(|_| Fault::new(format!("`{text}` is not a CIDR block")))
}

/// The candidate that `text` was probably meant to be.
pub(crate) fn nearest<'a>(
    text: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = text.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let distance = edit_distance(&lower, &candidate.to_ascii_lowercase());
            (distance, candidate)
        })
        .filter(|&(distance, candidate)| distance <= 1 + candidate.len() / 5)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Damerau-Levenshtein distance (adjacent transpositions count one).
fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().take(64).collect();
    let mut rows = vec![vec![0; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let substitution = usize::from(left[i - 1] != right[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(rows[i][j - 1] + 1)
                .min(rows[i - 1][j - 1] + substitution);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr_blocks() {
        for (text, meaning) in [
            ("10.66.0.10/4", "0.0.0.0/4"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::1/128", "2001:db8::1/128"),
            ("2001:DB8::ff/64", "2001:db8::/64"),
        ] {
            assert_eq!(cidr(text).unwrap().to_string(), meaning, "{text}");
        }
        for (text, hint) in [
            ("10.0.0.1", "`10.0.0.1/32`"),
            ("::1", "`::1/128`"),
            ("10.0.0/8", "192.0.2.0/24"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/08", "0 to 32"),
            ("10.0.0.0/+8", "0 to 32"),
            ("10.0.0.0/", "0 to 32"),
            ("::/129", "0 to 128"),
            ("010.0.0.0/8", "192.0.2.0/24"),
            ("::ffff:10.0.0.0/104", "`10.0.0.0/8`"),
            ("", "192.0.2.0/24"),
        ] {
            let fault = cidr(text).unwrap_err();
            let given = fault.hint.unwrap();
            assert!(given.contains(hint), "{text}: {given}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "app.kubernetes.io/name", "x_y.z-1", "A"] {
            assert!(label_key(good).is_ok(), "{good}");
        }
        let long = "x".repeat(64);
        for bad in ["", "-a", "a-", "a/b/c", "/a", "A.b/c", "a b", &long] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        assert!(label_value("").is_ok());
        assert!(label_value("-").is_err());
        assert!(namespace("a.b").is_err());
        assert!(object_name("a.b").is_ok());
        assert!(object_name("A").is_err());
        assert!(port_name("http").is_ok());
        assert!(port_name("a--b").is_err());
        assert!(port_name("0123456789abcdef").is_err());
        let fault = port_name("80").unwrap_err();
        assert!(fault.hint.unwrap().contains("without quotes: 80"));
        assert!(port_number(0).is_err() && port_number(65536).is_err());
        assert_eq!(port_number(65535), Ok(65535));
    }

    #[test]
    fn nearest_name() {
        let fields = ["podSelector", "policyTypes", "ingress", "egress"];
        assert_eq!(nearest("podselector", fields), Some("podSelector"));
        assert_eq!(nearest("ingres", fields), Some("ingress"));
        assert_eq!(nearest("ingerss", fields), Some("ingress"));
        assert_eq!(nearest("colour", fields), None);
    }
}
