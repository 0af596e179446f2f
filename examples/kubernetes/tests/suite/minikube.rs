//! `make minikube-run` and the like, with a minikube and a kubectl that only say how they were called.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use crate::support::{Scratch, root};

/// Tools on a path of their own, and what was asked of them.
struct Tools(Scratch);

impl Tools {
    fn new(test: &str, tools: &[&str]) -> Self {
        let scratch = Scratch::new(test);
        std::fs::create_dir_all(scratch.path("bin")).unwrap();
        for tool in tools {
            // There is no Secret yet, and no Deployment.
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

#[test]
fn the_secret_is_there_before_the_pods_and_on_no_command_line() {
    let tools = Tools::new("minikube-run", &["minikube", "kubectl"]);
    let output = tools.run("run");
    assert!(output.status.success(), "{output:?}");
    let calls = tools.calls();
    let order =
        ["image build", "namespace.yaml", "create secret generic groupcache-cluster-key", "apply -k", "rollout status"];
    let order: Vec<_> = order.iter().map(|what| place(&calls, what)).collect();
    assert!(order.is_sorted(), "{calls:#?}");
    assert!(!calls.iter().any(|call| call.contains("rollout restart")), "there was none to start anew: {calls:#?}");
    let key = std::fs::read_to_string(tools.0.path("log.in")).unwrap();
    assert_eq!(key.trim().len(), 44, "32 bytes in base64");
    assert!(!calls.iter().any(|call| call.contains(key.trim())), "nobody else can read it");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("curl http://192.168.49.2:30000/data/some-id"), "{said}");

    assert!(tools.run("clean").status.success());
    place(&tools.calls(), "delete --ignore-not-found namespace groupcache-example");
    assert!(tools.run("logs").status.success());
    place(&tools.calls(), "logs --selector app.kubernetes.io/name=groupcache-example");
}

#[test]
fn a_tool_that_is_missing_is_named() {
    let tools = Tools::new("minikube-none", &[]);
    // What the script itself needs, and nothing else of this machine.
    std::os::unix::fs::symlink("/usr/bin/dirname", tools.0.path("bin/dirname")).unwrap();
    let output = tools.run_with(&tools.0.path("bin"), "run");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("minikube: there is no minikube on the path; https://"), "{said}");
}
