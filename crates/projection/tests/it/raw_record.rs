//! A record as no client library would write it: a header's name is any bytes.

use anyhow::{Result, ensure};
use devstack::Addresses;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Writes a record with one header into partition 0 of a topic.
pub(crate) async fn write_raw_record(
    topic: &str,
    key: &[u8],
    payload: &[u8],
    (header_name, header_value): (&[u8], &[u8]),
) -> Result<()> {
    // Attributes, timestamp and offset, as differences to those of the batch; one header.
    let mut record = vec![0, 0, 0];
    for part in [key, payload] {
        varint(&mut record, part.len());
        record.extend(part);
    }
    varint(&mut record, 1);
    for part in [header_name, header_value] {
        varint(&mut record, part.len());
        record.extend(part);
    }
    let batch = batch(&record)?;

    // Produce, version 3: no transaction, all replicas, 10 s, one topic with one partition.
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
    // Correlation id, count, the topic's name, count, partition: behind these is the error's code.
    let code = &answer[4 + 4 + 2 + topic.len() + 4 + 4..][..2];
    ensure!(code == [0, 0], "Kafka rejected the record: {code:?}");
    Ok(())
}

/// A batch of one record, as magic 2 has it.
fn batch(record: &[u8]) -> Result<Vec<u8>> {
    let mut checked = Vec::new();
    // Attributes, the last offset.
    checked.extend([0; 6]);
    // The first and the last timestamp.
    checked.extend(1_767_225_600_000_i64.to_be_bytes());
    checked.extend(1_767_225_600_000_i64.to_be_bytes());
    // Producer id, its epoch, its sequence: none.
    checked.extend([0xff; 14]);
    checked.extend(1_i32.to_be_bytes());
    varint(&mut checked, record.len());
    checked.extend(record);

    let mut batch = vec![0; 8];
    batch.extend(u32::try_from(checked.len() + 9)?.to_be_bytes());
    batch.extend([0xff, 0xff, 0xff, 0xff, 2]);
    batch.extend(crc32c(&checked).to_be_bytes());
    batch.extend(checked);
    Ok(batch)
}

/// A length as a zigzag varint.
fn varint(bytes: &mut Vec<u8>, length: usize) {
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
