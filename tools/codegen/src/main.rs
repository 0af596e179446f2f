//! Writes `groupcache-core/src/proto/groupcache.v1.rs` from the `.proto` file beside it; no protoc is needed.
//!
//! `make proto` runs it. With `--check` it writes nothing and fails when the checked-in code differs.
use std::{env, error::Error, fs, path::Path, process::ExitCode};

const GENERATED: &str = "groupcache.v1.rs";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../groupcache-core");
    let checked_in = core.join("src/proto").join(GENERATED);
    let out = env::temp_dir().join(format!("groupcache-codegen-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    generate(&core.join("proto"), &out)?;
    let fresh = fs::read_to_string(out.join(GENERATED))?;
    fs::remove_dir_all(&out)?;

    if env::args().any(|a| a == "--check") {
        if fs::read_to_string(&checked_in).ok().as_deref() == Some(fresh.as_str()) {
            println!("the generated protocol code is up to date");
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("{} differs from what the .proto file gives: run `make proto`", checked_in.display());
        return Ok(ExitCode::FAILURE);
    }
    fs::write(&checked_in, fresh)?;
    println!("wrote {}", checked_in.display());
    Ok(ExitCode::SUCCESS)
}

fn generate(protos: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let file = protos.join("groupcache/v1/peer.proto");
    let descriptors = protox::compile([file], [protos])?;
    tonic_prost_build::configure()
        // Values and keys become slices of the receive buffer instead of copies.
        .bytes(".")
        .codec_path("crate::codec::Codec")
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(())
}
