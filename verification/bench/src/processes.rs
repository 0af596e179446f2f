//! Processes of the measurements: each on a core of its own, and none outlives the one that began it.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Result, contestants::Remote};

/// The core of clients, and of what asks itself.
pub const CLIENT: usize = 0;

/// The core of servers.
pub const SERVER: usize = 1;

/// How often, and in what steps, a server is looked for that was just started.
const LOOKS: u32 = 500;
const LOOK: Duration = Duration::from_millis(10);

/// An address of loopback that nobody listens on.
///
/// # Errors
/// When there is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Whether a program is there.
pub fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Ours end when this is closed, even if we are killed.
    _stdin: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Its id; taskset becomes what it starts.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

fn pinned(core: &str, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core, program]).stdin(Stdio::piped());
    command
}

fn this_program() -> Result<String> {
    Ok(std::env::current_exe()?.to_str().ok_or("the path of this program is no text")?.to_owned())
}

/// Starts this program in another role, and waits until it says that it is ready.
///
/// # Errors
/// When it ends before that.
pub fn serve(role: &str, settings: &impl Serialize, core: usize) -> Result<Process> {
    let mut command = pinned(&core.to_string(), &this_program()?);
    command.arg(role).arg(serde_json::to_string(settings)?).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let process = Process { child, _stdin: stdin };
    let mut line = String::new();
    BufReader::new(stdout.ok_or("its output is not ours")?).read_line(&mut line)?;
    if line.trim() == "ready" { Ok(process) } else { Err(format!("{role} said {line:?} and not ready").into()) }
}

/// Starts a server that is not ours, with one thread, and waits until it listens.
///
/// # Errors
/// When it does not within some seconds.
pub fn serve_foreign(who: Remote, listen: SocketAddr, core: usize) -> Result<Process> {
    let port = listen.port().to_string();
    let program = who.program().ok_or("it has no program of its own")?;
    let mut command = pinned(&core.to_string(), program);
    match program {
        // Its own limit of memory is 64 MiB, and of a value 1 MiB: neither is what is measured.
        "memcached" => command
            .args(["-p", &port, "-l", "127.0.0.1", "-U", "0", "-t", "1", "-u", "nobody"])
            .args(["-m", "4096", "-I", "4m", "-c", "2048"]),
        _ => command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]),
    };
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let process = Process { child, _stdin: None };
    for _ in 0..LOOKS {
        if TcpStream::connect(listen).is_ok() {
            return Ok(process);
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else runs here")]
        std::thread::sleep(LOOK);
    }
    Err(format!("{program} does not listen on {listen}").into())
}

/// Runs this program in another role to its end; each line that it says is a result.
///
/// # Errors
/// When it fails, or says something else.
pub fn ask<T: DeserializeOwned>(role: &str, settings: &impl Serialize, cores: &str) -> Result<Vec<T>> {
    let mut command = pinned(cores, &this_program()?);
    let out = command.arg(role).arg(serde_json::to_string(settings)?).stderr(Stdio::inherit()).output()?;
    if !out.status.success() {
        return Err(format!("{role} {} ended with {}", serde_json::to_string(settings)?, out.status).into());
    }
    String::from_utf8(out.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Says that it is ready, and waits until whoever began it is gone.
///
/// # Errors
/// None.
pub async fn ready_until_stdin_ends() -> Result<()> {
    println!("ready");
    let mut stdin = tokio::net::unix::pipe::Receiver::from_file(std::fs::File::open("/dev/stdin")?)?;
    let mut nothing = [0_u8; 1];
    while tokio::io::AsyncReadExt::read(&mut stdin, &mut nothing).await? > 0 {}
    Ok(())
}
