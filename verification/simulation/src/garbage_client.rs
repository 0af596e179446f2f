//! Garbage client: connects to nodes without being a node and sends random bytes (P8).

use std::time::Duration;

use fastrand::Rng;
use tokio::io::AsyncWriteExt;
use turmoil::net::TcpStream;

use crate::{
    provider::host,
    world::{PORT, World},
};

/// Time limit for a connection and the bytes on it.
const LIMIT: Duration = Duration::from_secs(1);

/// Sends the garbage that the driver has ordered, until the simulation ends.
pub(crate) async fn run(world: World) -> Result<(), Box<dyn std::error::Error>> {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let due = std::mem::take(&mut world.lock().garbage_orders);
        for (to, bytes) in due {
            let seed = world.lock().log.number();
            let mut rng = Rng::with_seed(seed);
            let garbage: Vec<u8> = (0..bytes).map(|_| rng.u8(..)).collect();
            let sent = async {
                let mut tcp = TcpStream::connect((host(to), PORT)).await?;
                if seed.is_multiple_of(2) {
                    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
                }
                tcp.write_all(&garbage).await
            };
            let _ = tokio::time::timeout(LIMIT, sent).await;
        }
    }
}
