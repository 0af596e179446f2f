//! Memory: the resident memory of entries compared with the accounted bytes, with room for a million entries and for
//! half of them.
//!
//! Linux only, because the program reads `/proc/self/statm`.

use std::{convert::Infallible, error::Error, fs};

use bytes::Bytes;
use groupcache_core::{Group, Json, Node, Value};

const ENTRIES: u32 = 1_000_000;

const VALUE_BYTES: usize = 100;

const PAGE_BYTES: u64 = 4096;

/// Budget far above the weight of all entries, so that nothing is evicted.
const ROOM: u64 = 4 << 30;

/// Budget for about half of the entries, so that each load evicts another entry.
const LITTLE_ROOM: u64 = 180 << 20;

fn resident() -> Result<u64, Box<dyn Error>> {
    let pages = fs::read_to_string("/proc/self/statm")?;
    Ok(pages.split(' ').nth(1).ok_or("statm has no second field")?.parse::<u64>()? * PAGE_BYTES)
}

/// Loads all entries twice, and prints the memory of the entries that are present.
async fn fill<V: Value>(name: &str, group: Group<V>) -> Result<(), Box<dyn Error>> {
    let before = resident()?;
    for n in (0..ENTRIES).chain(0..ENTRIES) {
        group.get(&format!("key-{n:016}")).await?;
    }
    let entries = group.inspect().entries();
    let each = (resident()? - before) as f64 / entries as f64;
    let accounted = group.inspect().bytes() as f64 / entries as f64;
    let more = 100.0 * (each / accounted - 1.0);
    println!("| {entries} {name} | {each:.0} B | {accounted:.0} B | {more:+.1} % |");
    Ok(())
}

/// Runs each line in a process of its own, because otherwise a line would reuse the memory of the line before.
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
