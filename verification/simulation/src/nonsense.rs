//! P8: somebody who is no node, and talks to nodes.

use std::time::Duration;

use fastrand::Rng;
use tokio::io::AsyncWriteExt;
use turmoil::net::TcpStream;

use crate::{
    provider::host,
    world::{PORT, World},
};

/// How long it takes for what it has to say.
const LIMIT: Duration = Duration::from_secs(1);

/// Says what is due, again and again.
pub(crate) async fn talk(world: World) -> Result<(), Box<dyn std::error::Error>> {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let due = std::mem::take(&mut world.lock().nonsense);
        for (to, bytes) in due {
            let seed = world.lock().log.number();
            let mut rng = Rng::with_seed(seed);
            let said: Vec<u8> = (0..bytes).map(|_| rng.u8(..)).collect();
            let talked = async {
                let mut tcp = TcpStream::connect((host(to), PORT)).await?;
                if seed.is_multiple_of(2) {
                    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
                }
                tcp.write_all(&said).await
            };
            let _ = tokio::time::timeout(LIMIT, talked).await;
        }
    }
}
