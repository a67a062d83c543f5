//! Writes records that few client libraries write: with a header whose name is arbitrary bytes or whose value is null.

use anyhow::{Result, ensure};
use devstack::Addresses;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Writes a record with one header to partition 0 of a topic.
pub(crate) async fn write_raw_record(
    topic: &str,
    key: &[u8],
    payload: Option<&[u8]>,
    (header_name, header_value): (&[u8], Option<&[u8]>),
) -> Result<()> {
    // Attributes, timestamp delta, offset delta.
    let mut record = vec![0, 0, 0];
    put_bytes(&mut record, Some(key));
    put_bytes(&mut record, payload);
    put_varint(&mut record, 1);
    put_bytes(&mut record, Some(header_name));
    put_bytes(&mut record, header_value);
    let batch = encode_batch(&record)?;

    // Produce request, version 3: no transaction, acks=all, timeout 10 s, one topic with one partition.
    let mut request = Vec::new();
    request.extend([0, 0, 0, 3, 0, 0, 0, 1, 0xff, 0xff]);
    request.extend([0xff, 0xff, 0xff, 0xff]);
    request.extend(10_000_i32.to_be_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(u16::try_from(topic.len())?.to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend(1_i32.to_be_bytes());
    request.extend(0_i32.to_be_bytes());
    request.extend(u32::try_from(batch.len())?.to_be_bytes());
    request.extend(batch);

    let mut stream = TcpStream::connect(Addresses::shared().brokers()).await?;
    stream.write_u32(u32::try_from(request.len())?).await?;
    stream.write_all(&request).await?;
    let mut answer = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut answer).await?;
    // The error code follows the correlation id, topic count, topic name, partition count and partition.
    let code = &answer[4 + 4 + 2 + topic.len() + 4 + 4..][..2];
    ensure!(code == [0, 0], "Kafka rejected the record: {code:?}");
    Ok(())
}

/// Encodes a record batch v2 (magic 2) of one record.
fn encode_batch(record: &[u8]) -> Result<Vec<u8>> {
    let mut checked = Vec::new();
    // Attributes, last offset delta.
    checked.extend([0; 6]);
    // Base timestamp, max timestamp.
    checked.extend(1_767_225_600_000_i64.to_be_bytes());
    checked.extend(1_767_225_600_000_i64.to_be_bytes());
    // Producer id, producer epoch, base sequence: none.
    checked.extend([0xff; 14]);
    checked.extend(1_i32.to_be_bytes());
    put_varint(&mut checked, record.len());
    checked.extend(record);

    let mut batch = vec![0; 8];
    batch.extend(u32::try_from(checked.len() + 9)?.to_be_bytes());
    batch.extend([0xff, 0xff, 0xff, 0xff, 2]);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    Ok(batch)
}

/// Appends bytes with their length; null has the length -1.
fn put_bytes(record: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => record.push(1),
        Some(bytes) => {
            put_varint(record, bytes.len());
            record.extend(bytes);
        }
    }
}

/// Appends a length as a zigzag varint.
fn put_varint(bytes: &mut Vec<u8>, length: usize) {
    let mut rest = length << 1;
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}
