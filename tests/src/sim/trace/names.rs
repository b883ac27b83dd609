//! The names of hosts and processes for people, instead of addresses and node ids.

use crate::sim::host::LAN_ADDRESS;

/// Digits of a node's id.
const NODE_DIGITS: usize = 32;

/// The same text, with "host 1" for its address, and "host-1#7" for the node that is the seventh
/// process of the run, and runs on host 1.
pub(in crate::sim) fn for_people(text: &str) -> String {
    let mut named = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric()) {
        let (before, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_alphanumeric() && !".:".contains(c)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        named.push_str(before);
        let bare = word.trim_end_matches(['.', ':']);
        named.push_str(&node(bare).or_else(|| host(bare)).unwrap_or_else(|| bare.to_owned()));
        named.push_str(&word[bare.len()..]);
        rest = after;
    }
    named.push_str(rest);
    named
}

fn node(word: &str) -> Option<String> {
    let id = u128::from_str_radix(word, 16).ok().filter(|_| word.len() == NODE_DIGITS)?;
    Some(format!("host-{}#{}", id >> 64, id & u128::from(u64::MAX)))
}

fn host(word: &str) -> Option<String> {
    if word == LAN_ADDRESS.to_string() {
        return Some("ft-lan".into());
    }
    let (high, low) = word.strip_prefix("10.0.")?.strip_suffix(":7200")?.split_once('.')?;
    let (high, low): (u8, u8) = (high.parse().ok()?, low.parse().ok()?);
    Some(format!("host {}", u16::from_be_bytes([high, low])))
}

#[cfg(test)]
mod tests {
    use super::for_people;
    use crate::sim::host::address;
    use logchannel::session::NodeId;

    #[test]
    fn nodes_and_addresses_have_the_hosts_name() {
        let text = format!("{}: of {}, not {}.", address(2), NodeId(1 << 64 | 7), address(300));
        assert_eq!(for_people(&text), "host 2: of host-1#7, not host 300.");
        assert_eq!(for_people("no room at 10.1.0.0:7200: 10.0.0.1"), "no room at ft-lan: 10.0.0.1");
    }
}
