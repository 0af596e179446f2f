//! Codegen: writes the code in `groupcache-core/src/protocol/proto` from the `.proto` file in `groupcache-core/proto`,
//! without protoc.
//!
//! `make proto` runs this program. With `--check` the program writes nothing, and fails if the checked-in code differs.
use std::{env, error::Error, fs, path::Path, process::ExitCode};

use prost_types::{FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto};
use tonic_build::manual::{Builder, Method, Service};

/// Generated files: the messages, the client, the server, and client and server with plain prost messages.
const GENERATED: [&str; 4] = ["groupcache.v1.rs", "client.rs", "server.rs", "plain.rs"];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let core = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../groupcache-core");
    let checked_in = core.join("src/protocol/proto");
    let out = env::temp_dir().join(format!("groupcache-codegen-{}", std::process::id()));
    fs::create_dir_all(&out)?;
    generate(&core.join("proto"), &out)?;
    let is_check = env::args().any(|a| a == "--check");
    let mut exit = ExitCode::SUCCESS;
    for file in GENERATED {
        let (fresh, checked_in) = (fs::read_to_string(out.join(file))?, checked_in.join(file));
        if !is_check {
            fs::write(&checked_in, fresh)?;
            println!("wrote {}", checked_in.display());
        } else if fs::read_to_string(&checked_in).ok().as_deref() != Some(fresh.as_str()) {
            eprintln!(
                "{} differs from the code generated from the .proto file; run `make proto`",
                checked_in.display()
            );
            exit = ExitCode::FAILURE;
        }
    }
    fs::remove_dir_all(&out)?;
    if is_check && exit == ExitCode::SUCCESS {
        println!("the generated protocol code is up to date");
    }
    Ok(exit)
}

fn generate(protos: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let file = protos.join("groupcache/v1/peer.proto");
    let mut descriptors = protox::compile([file], [protos])?;
    for (side, file) in [(Side::Client, "client.rs"), (Side::Server, "server.rs"), (Side::Plain, "plain.rs")] {
        write_service(&descriptors, side, out, file)?;
    }
    descriptors.file.iter_mut().for_each(|file| file.service.clear());
    // `bytes` fields become `Bytes`, so that keys and values are slices of the received buffer.
    tonic_prost_build::configure().bytes(".").out_dir(out).compile_fds(descriptors)?;
    Ok(())
}

/// Part of the service to generate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Client of the streaming methods, which sends `Outgoing` of `wire` and reads `Incoming`. The unary methods are
    /// for other languages.
    Client,
    /// Server of all methods, with the types of `wire`.
    Server,
    /// Client and server with the generated messages and their codec, for tests that send what no node sends.
    Plain,
}

/// Writes one side of the service to `file`.
fn write_service(descriptors: &FileDescriptorSet, side: Side, out: &Path, file: &str) -> Result<(), Box<dyn Error>> {
    let described =
        descriptors.file.iter().find(|file| !file.service.is_empty()).ok_or("the .proto file has no service")?;
    for (at, service) in described.service.iter().enumerate() {
        let mut generated = Service::builder().name(service.name()).package(described.package());
        for (n, method) in service.method.iter().enumerate() {
            if side != Side::Client || method.client_streaming() {
                generated = generated.method(method_of(method, side, &comment(described, at, n)));
            }
        }
        Builder::new()
            .build_client(side != Side::Server)
            .build_server(side != Side::Client)
            .build_transport(side == Side::Plain)
            .out_dir(out)
            .compile(&[generated.build()]);
        fs::rename(out.join(format!("{}.{}.rs", described.package(), service.name())), out.join(file))?;
    }
    Ok(())
}

fn method_of(method: &MethodDescriptorProto, side: Side, comment: &str) -> Method {
    let (sent, read) = ("crate::protocol::wire::Outgoing", "crate::protocol::wire::Incoming");
    let message = |path: &str| path.replace(".groupcache.v1.", "super::");
    let (input, output) = match (method.client_streaming(), side) {
        (_, Side::Plain) => (message(method.input_type()), message(method.output_type())),
        (true, Side::Client) => (sent.to_owned(), read.to_owned()),
        (true, Side::Server) => (read.to_owned(), sent.to_owned()),
        (false, _) => ("crate::protocol::wire::GetRequest".to_owned(), "crate::protocol::wire::UnaryAnswer".to_owned()),
    };
    let mut generated = Method::builder()
        .name(method.name().to_lowercase())
        .route_name(method.name())
        .comment(comment)
        .input_type(input)
        .output_type(output)
        .codec_path(if side == Side::Plain { "tonic_prost::ProstCodec" } else { "crate::protocol::codec::Codec" });
    if method.client_streaming() {
        generated = generated.client_streaming();
    }
    if method.server_streaming() {
        generated = generated.server_streaming();
    }
    generated.build()
}

/// Returns the comment above a method in the `.proto` file.
fn comment(file: &FileDescriptorProto, service: usize, method: usize) -> String {
    // In a descriptor, field 6 of a file holds the services, and field 2 of a service holds the methods.
    let path = [6, service as i32, 2, method as i32];
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    let comment = locations.filter(|at| at.path == path).find_map(|at| at.leading_comments.clone());
    comment.unwrap_or_default().trim_end().to_owned()
}
