//! Variable-length integers as in Kafka's record batches: base 128, least significant group first, signed with zigzag
//! encoding. The same as in Protocol Buffers: <https://protobuf.dev/programming-guides/encoding/#signed-ints>.

/// Appends a signed number.
pub(crate) fn put_varint(out: &mut Vec<u8>, value: i64) {
    put_unsigned_varint(out, zigzag(value));
}

/// Appends an unsigned number, as lengths in flexible message versions (KIP-482) are encoded.
pub(crate) fn put_unsigned_varint(out: &mut Vec<u8>, mut rest: u64) {
    while rest >= 0x80 {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "seven bits and the continuation bit"
        )]
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
    out.push(rest as u8);
}

/// Returns the encoded length of a signed number, in bytes.
pub(crate) fn varint_length(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends length-prefixed bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, as_length(bytes.len()));
    out.extend_from_slice(bytes);
}

/// Returns the encoded length of length-prefixed bytes.
pub(crate) fn bytes_length(length: usize) -> usize {
    varint_length(as_length(length)) + length
}

/// Removes and returns bytes that [`put_bytes`] wrote at the front.
pub(crate) fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

/// Converts a length. Lengths in memory always fit.
pub(crate) fn as_length(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

fn take_varint(rest: &mut &[u8]) -> Option<i64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
        }
    }
    None
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_number_round_trips_and_has_the_computed_length(value: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_length(value));
            let mut rest = &out[..];
            prop_assert_eq!(take_varint(&mut rest), Some(value));
            prop_assert_eq!(rest, [0_u8; 0]);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = take_bytes(&mut &bytes[..]);
        }
    }

    #[test]
    fn small_numbers_of_either_sign_take_few_bytes() {
        for (value, bytes) in [
            (0, vec![0]),
            (-1, vec![1]),
            (1, vec![2]),
            (64, vec![0x80, 1]),
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out, bytes);
        }
    }
}
