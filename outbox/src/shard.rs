//! Which shard a message belongs to.

use outbox_broker::Message;

/// Shards at most. Chosen: one relay drains one shard faster than most brokers take; a lease a shard is
/// renewed every few seconds.
pub(crate) const MAX_SHARDS: i16 = 256;

/// The shard of a message among `shards`: FNV-1a (64 bits) over the UTF-8 bytes of the ordering key, or of
/// the message id's text where there is no key, modulo `shards`.
///
/// Stable for ever: services in other languages compute the same.
pub(crate) fn shard_of(message: &Message, shards: i16) -> i16 {
    if shards <= 1 {
        return 0;
    }
    let hash = match &message.key {
        Some(key) => fnv1a(key.as_bytes()),
        None => fnv1a(message.id.to_string().as_bytes()),
    };
    // The remainder is below `shards`, which is an i16.
    i16::try_from(hash % u64::from(shards.unsigned_abs())).unwrap_or(0)
}

/// FNV-1a with the 64-bit parameters of draft-eastlake-fnv.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // Test vectors of draft-eastlake-fnv.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn one_key_has_one_shard_and_keys_spread() {
        let of = |key: &str| {
            let message = Message::builder("t", "k").source("/s").key(key).build().unwrap();
            shard_of(&message, 8)
        };
        assert_eq!(of("order-1"), of("order-1"));
        let used: std::collections::BTreeSet<i16> = (0..200).map(|n| of(&format!("order-{n}"))).collect();
        assert_eq!(used, (0..8).collect());
    }
}
