//! What entries take: resident memory, against what is accounted; with room for a million, and with room for half.
//!
//! Linux only: it reads `/proc/self/statm`.

use std::{convert::Infallible, error::Error, fs};

use bytes::Bytes;
use groupcache_core::{Group, Json, Node, Value};

const ENTRIES: u32 = 1_000_000;

const VALUE_BYTES: usize = 100;

const PAGE_BYTES: u64 = 4096;

/// Far above what they take: nothing is evicted.
const ROOM: u64 = 4 << 30;

/// Room for about half of them: each load evicts another.
const LITTLE_ROOM: u64 = 180 << 20;

fn resident() -> Result<u64, Box<dyn Error>> {
    let pages = fs::read_to_string("/proc/self/statm")?;
    Ok(pages.split(' ').nth(1).ok_or("statm has no second field")?.parse::<u64>()? * PAGE_BYTES)
}

/// Loads all of them twice over, and prints what those take that are there.
async fn fill<V: Value>(name: &str, group: Group<V>) -> Result<(), Box<dyn Error>> {
    let before = resident()?;
    for n in (0..ENTRIES).chain(0..ENTRIES) {
        group.get(&format!("key-{n:016}")).await?;
    }
    let entries = group.entries();
    let each = (resident()? - before) as f64 / entries as f64;
    let accounted = group.bytes() as f64 / entries as f64;
    let more = 100.0 * (each / accounted - 1.0);
    println!("| {entries} {name} | {each:.0} B | {accounted:.0} B | {more:+.1} % |");
    Ok(())
}

/// A process for each line, or the memory of one would be used again by the next.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [kind, room] = arguments.as_slice() else {
        println!("| 20 bytes of key, {VALUE_BYTES} of value | resident each | accounted | more |");
        println!("|---|---|---|---|");
        for (kind, room) in ["Bytes", "String", "Json"].iter().flat_map(|kind| [ROOM, LITTLE_ROOM].map(|r| (kind, r))) {
            let arguments = [(*kind).to_owned(), room.to_string()];
            let status = std::process::Command::new(std::env::current_exe()?).args(arguments).status()?;
            assert!(status.success(), "{kind}: {status}");
        }
        return Ok(());
    };
    let (node, room) = (Node::builder().start().await?, room.parse()?);
    let text = "v".repeat(VALUE_BYTES);
    match kind.as_str() {
        "Bytes" => {
            let group = node.group::<Bytes>("data").capacity_bytes(room);
            let load = async |text: &String, _: &str| Ok::<_, Infallible>(Bytes::copy_from_slice(text.as_bytes()));
            fill("`Bytes`", group.loader_with(text, load).build()?).await?;
        }
        "String" => {
            let group = node.group::<String>("data").capacity_bytes(room);
            let load = async |text: &String, _: &str| Ok::<_, Infallible>(text.clone());
            fill("`String`", group.loader_with(text, load).build()?).await?;
        }
        _ => {
            let group = node.group::<Json<(String, u32)>>("data").capacity_bytes(room);
            let load = async |text: &String, _: &str| Ok::<_, Infallible>((text.replace("vvvvvvvv", "vvvvvvv"), 36));
            fill("`Json<(String, u32)>`", group.loader_with(text, load).build()?).await?;
        }
    }
    node.shutdown().await?;
    Ok(())
}
