//! `make minikube-run`, `minikube-logs` and `minikube-clean`, with fake programs `minikube` and `kubectl` that only log
//! their arguments.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use crate::support::{Scratch, root};

/// Fake programs in a directory of their own, with the log of their calls.
struct Tools(Scratch);

impl Tools {
    fn new(test: &str, tools: &[&str]) -> Self {
        let scratch = Scratch::new(test);
        std::fs::create_dir_all(scratch.path("bin")).unwrap();
        for tool in tools {
            // Every `get` fails, as in a cluster without the Secret and without the Deployment.
            let text = format!(
                "#!/bin/sh\necho \"{tool} $*\" >> {log}\ncase \"$*\" in *' get '*) exit 1 ;; *' create '*) cat > {log}.in ;; \
                 *--url*) echo http://192.168.49.2:30000 ;; esac\n",
                log = scratch.path("log")
            );
            let path = scratch.write(&format!("bin/{tool}"), &text);
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        Self(scratch)
    }

    fn run(&self, what: &str) -> Output {
        self.run_with(&format!("{}:/usr/bin:/bin", self.0.path("bin")), what)
    }

    fn run_with(&self, path: &str, what: &str) -> Output {
        Command::new("/bin/bash").arg(root().join("tools/minikube")).arg(what).env("PATH", path).output().unwrap()
    }

    fn calls(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.0.path("log")).unwrap_or_default();
        log.lines().map(|line| line.replace("kubectl --context minikube ", "kubectl ")).collect()
    }
}

fn place(calls: &[String], what: &str) -> usize {
    calls.iter().position(|call| call.contains(what)).unwrap_or_else(|| panic!("{what}: {calls:#?}"))
}

/// Checks that the script makes the Secret before the pods, and that the key is on no command line, where every user of
/// the machine could read it.
#[test]
fn secret_is_made_before_pods_and_on_no_command_line() {
    let tools = Tools::new("minikube-run", &["minikube", "kubectl"]);
    let output = tools.run("run");
    assert!(output.status.success(), "{output:?}");
    let calls = tools.calls();
    let order =
        ["image build", "namespace.yaml", "create secret generic groupcache-cluster-key", "apply -k", "rollout status"];
    let order: Vec<_> = order.iter().map(|what| place(&calls, what)).collect();
    assert!(order.is_sorted(), "{calls:#?}");
    assert!(
        !calls.iter().any(|call| call.contains("rollout restart")),
        "no old Deployment needs a restart: {calls:#?}"
    );
    let key = std::fs::read_to_string(tools.0.path("log.in")).unwrap();
    assert_eq!(key.trim().len(), 44, "32 bytes in base64");
    assert!(!calls.iter().any(|call| call.contains(key.trim())), "the key is on a command line");
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("curl http://192.168.49.2:30000/data/some-id"), "{printed}");

    assert!(tools.run("clean").status.success());
    place(&tools.calls(), "delete --ignore-not-found namespace groupcache-example");
    assert!(tools.run("logs").status.success());
    place(&tools.calls(), "logs --selector app.kubernetes.io/name=groupcache-example");
}

/// Checks that the script names a program that is missing, and where to find it.
#[test]
fn missing_tool_is_named() {
    let tools = Tools::new("minikube-none", &[]);
    // The path has only `dirname`, which the script itself needs.
    std::os::unix::fs::symlink("/usr/bin/dirname", tools.0.path("bin/dirname")).unwrap();
    let output = tools.run_with(&tools.0.path("bin"), "run");
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(printed.starts_with("minikube: minikube is not on the path; install it as https://"), "{printed}");
}
