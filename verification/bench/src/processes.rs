//! Processes: the processes of a measurement, each pinned to a core. No process outlives its parent.

use std::{
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Result, targets::Remote};

/// Core of clients, and of processes without a peer.
pub const CLIENT: usize = 0;

/// Core of servers.
pub const SERVER: usize = 1;

/// Number of attempts to connect to a server that is starting.
const LOOKS: u32 = 500;
/// Pause between two attempts.
const LOOK: Duration = Duration::from_millis(10);

/// Returns an address of loopback that no process listens on.
///
/// # Errors
/// An error if no address is free.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Returns whether a program is installed.
pub fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A process that is killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Standard input of a role of this program, which ends when the pipe closes, even if the parent is killed.
    _stdin: Option<ChildStdin>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Returns the process id, which is that of the program, because taskset executes it in its own process.
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
    Ok(std::env::current_exe()?.to_str().ok_or("the path of this program is not valid UTF-8")?.to_owned())
}

/// Starts this program in another role, and waits until the role is ready.
///
/// # Errors
/// An error if the process ends before it is ready, or prints another line.
pub fn serve(role: &str, settings: &impl Serialize, core: usize) -> Result<Process> {
    let mut command = pinned(&core.to_string(), &this_program()?);
    command.arg(role).arg(serde_json::to_string(settings)?).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let process = Process { child, _stdin: stdin };
    let mut line = String::new();
    BufReader::new(stdout.ok_or("the output of the process is not piped")?).read_line(&mut line)?;
    if line.trim() == "ready" {
        Ok(process)
    } else {
        Err(format!("role {role} printed {line:?} instead of \"ready\"").into())
    }
}

/// Starts a server of another project with one thread, and waits until the server listens.
///
/// # Errors
/// An error if the server does not listen within 5 s.
pub fn serve_foreign(target: Remote, listen: SocketAddr, core: usize) -> Result<Process> {
    let port = listen.port().to_string();
    let program = target.program().ok_or("the target has no program of its own")?;
    let mut command = pinned(&core.to_string(), program);
    match program {
        // The measurement is not of memcached's default limits, which are 64 MiB of memory and 1 MiB for a value.
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
    Err(format!("{program} does not listen on {listen} within 5 s").into())
}

/// Runs this program in another role to its end, and returns a result for each line of output.
///
/// # Errors
/// An error if the process fails, or a line is not a result.
pub fn ask<T: DeserializeOwned>(role: &str, settings: &impl Serialize, cores: &str) -> Result<Vec<T>> {
    let mut command = pinned(cores, &this_program()?);
    let out = command.arg(role).arg(serde_json::to_string(settings)?).stderr(Stdio::inherit()).output()?;
    if !out.status.success() {
        return Err(format!("role {role} {} failed with {}", serde_json::to_string(settings)?, out.status).into());
    }
    String::from_utf8(out.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Prints that the role is ready, and waits until the parent has ended.
///
/// # Errors
/// An error if standard input cannot be read.
pub async fn ready_until_stdin_ends() -> Result<()> {
    println!("ready");
    let mut stdin = tokio::net::unix::pipe::Receiver::from_file(std::fs::File::open("/dev/stdin")?)?;
    let mut nothing = [0_u8; 1];
    while tokio::io::AsyncReadExt::read(&mut stdin, &mut nothing).await? > 0 {}
    Ok(())
}
