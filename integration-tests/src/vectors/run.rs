//! Carries a case out on a node: the plugin executed as a runtime does, or by libcni through cnitool. State is judged by
//! `ip`, `ovs-vsctl` and the like only.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Vector, compare, expected_exit, list, verb};
use crate::space::Space;

/// What a node has before any case; everything else is removed after one.
#[derive(Debug)]
pub struct Usual {
    links: BTreeSet<String>,
}

impl Usual {
    /// # Errors
    /// `ip` fails.
    pub fn of(node: &Space) -> anyhow::Result<Self> {
        let links: Value = serde_json::from_str(&node.run("ip", &["-j", "link"])?)?;
        Ok(Self { links: list(&links).iter().filter_map(|l| l["ifname"].as_str()).map(str::to_owned).collect() })
    }

    /// # Errors
    /// A bridge or namespace cannot be removed.
    pub fn restore(&self, node: &Space) -> anyhow::Result<()> {
        let script = "for b in $(ovs-vsctl --timeout=10 list-br); do ovs-vsctl --timeout=10 del-br $b; done
            ip -all netns delete; rm -rf /var/lib/cni /run/cni-networks /run/vector /run/flat.conf /etc/cni/net.d/mooring.d";
        node.run("sh", &["-ec", script])?;
        for link in Self::of(node)?.links.difference(&self.links) {
            // `ovs-netdev` and the like go with the last bridge, some moments later.
            let _ = node.output("ip", &["link", "delete", link]);
        }
        Ok(())
    }
}

/// How a plugin is called.
#[derive(Debug, Clone)]
pub enum By {
    /// Environment and standard input, as the case has them.
    Exec,
    /// The program cnitool, which makes both out of a network's file and remembers results.
    Cnitool(PathBuf),
}

/// Where a case is carried out, for one plugin.
#[derive(Debug)]
pub struct Case<'a> {
    pub node: &'a Space,
    pub plugin: &'a str,
    /// CNI_PATH: directories of plugins.
    pub path: String,
    pub by: By,
}

/// What came of one call.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    pub exit: i64,
    /// What the plugin printed, where that is JSON; null otherwise.
    pub stdout: Value,
    /// Links, addresses, routes, sysctls and the IPAM's files after it.
    pub state: Value,
}

impl Case<'_> {
    /// The outcome of each call.
    ///
    /// # Errors
    /// An expectation of the case is not met: which.
    pub fn run(&self, vector: &Vector) -> Result<Vec<Done>, String> {
        self.carry_out(vector, true)
    }

    /// The same whatever the case expects.
    ///
    /// # Errors
    /// The case cannot be carried out.
    pub fn look(&self, vector: &Vector) -> Result<Vec<Done>, String> {
        self.carry_out(vector, false)
    }

    /// What the case finds on the node.
    ///
    /// # Errors
    /// A line of it fails.
    pub fn prepare(&self, vector: &Vector) -> Result<(), String> {
        self.shell("ip netns add pod; ip -n pod link set lo up")?;
        for line in vector.before() {
            self.shell(line)?;
        }
        if let Some(flat) = vector.flat() {
            self.node.write("/run/flat.conf", &flat.to_string()).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    /// What a runtime does in the end: DEL of each ADD that succeeded, the last one first.
    ///
    /// # Errors
    /// One fails.
    pub fn take_down(&self, vector: &Vector, done: &[Done]) -> Result<(), String> {
        let calls = vector.calls().iter().filter(|call| call.get("run").is_none()).zip(done);
        let added: Vec<_> = calls.filter(|(call, done)| verb(call) == "ADD" && done.exit == 0).collect();
        for (call, added) in added.into_iter().rev() {
            let mut del = call.clone();
            del["verb"] = json!("DEL");
            let (gone, printed) = self.exec(&del, vector.stdin(call).cloned(), &added.stdout)?;
            if gone.exit != 0 {
                return Err(format!("DEL in the end: {printed}"));
            }
        }
        Ok(())
    }

    fn carry_out(&self, vector: &Vector, judged: bool) -> Result<Vec<Done>, String> {
        let (mut done, mut added) = (Vec::new(), Value::Null);
        for (i, call) in vector.calls().iter().enumerate() {
            if call.get("run").is_some() {
                let checked = self.check(call);
                // What a line is for the sake of a state that is compared must be done.
                if judged {
                    checked.map_err(|e| format!("call {i}: {e}"))?;
                }
                continue;
            }
            let stdin = vector.stdin(call).cloned();
            let (outcome, printed) = match &self.by {
                By::Exec => self.exec(call, stdin, &added)?,
                By::Cnitool(tool) => self.cnitool(tool, call, &stdin.unwrap_or(Value::Null))?,
            };
            if judged {
                self.expected(call, &outcome).map_err(|e| format!("call {i}: {e}: {printed}"))?;
            }
            if verb(call) == "ADD" && outcome.exit == 0 {
                added = outcome.stdout.clone();
            }
            done.push(Done { state: compare::state(self.node)?, ..outcome });
        }
        if judged {
            vector.after().iter().try_for_each(|check| self.check(check))?;
        }
        Ok(done)
    }

    fn shell(&self, line: &str) -> Result<String, String> {
        self.node.run("sh", &["-ec", &line.replace("$PLUGIN", self.plugin)]).map_err(|e| e.to_string())
    }

    fn file(&self) -> Result<String, String> {
        let mut files = self.path.split(':').map(|d| format!("{d}/{}", self.plugin));
        files.find(|f| Path::new(f).is_file()).ok_or_else(|| format!("{} is not in {}", self.plugin, self.path))
    }

    /// With exactly this environment.
    fn program(&self, stdin: &str, env: &[(String, String)], program: &[&str]) -> Result<(i64, String, String), String> {
        let script = "printf %s \"$1\" > /run/vector.stdin; shift; exec env \"$@\" < /run/vector.stdin";
        let mut args: Vec<String> =
            ["-c", script, "sh", stdin, "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"].map(str::to_owned).into();
        args.extend(env.iter().map(|(k, v)| format!("{k}={v}")));
        args.extend(program.iter().map(|p| (*p).to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = self.node.output("sh", &args).map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        // A signal has no code.
        Ok((output.status.code().map_or(-1, i64::from), text(&output.stdout), text(&output.stderr)))
    }

    fn exec(&self, call: &Value, stdin: Option<Value>, added: &Value) -> Result<(Done, String), String> {
        let mut env = json!({"CNI_COMMAND": verb(call), "CNI_CONTAINERID": "vector1", "CNI_NETNS": "/run/netns/pod",
            "CNI_IFNAME": "eth0", "CNI_PATH": self.path});
        for (k, v) in call["env"].as_object().into_iter().flatten() {
            env[k] = v.clone();
        }
        let text = match (call["stdin_text"].as_str(), stdin) {
            (Some(text), _) => text.to_owned(),
            (None, Some(mut stdin)) => {
                if call["prev"] == true {
                    stdin["prevResult"] = added.clone();
                }
                stdin.to_string().replace("$PLUGIN", self.plugin)
            }
            (None, None) => return Err("a call without stdin, and no conf".to_owned()),
        };
        let env: Vec<(String, String)> =
            env.as_object().into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
        let (exit, out, err) = self.program(&text, &env, &[&self.file()?])?;
        let stdout = serde_json::from_str(&out).unwrap_or(Value::Null);
        Ok((Done { exit, stdout, state: Value::Null }, format!("stdout {out} stderr {err}")))
    }

    /// A file of the network, and before the plugin one that keeps what it prints: of an error cnitool tells only the text.
    fn cnitool(&self, tool: &Path, call: &Value, conf: &Value) -> Result<(Done, String), String> {
        let conf = conf.to_string().replace("$PLUGIN", self.plugin);
        let mut conf: Value = serde_json::from_str(&conf).map_err(|e| e.to_string())?;
        let o = conf.as_object_mut().ok_or("the configuration is no object")?;
        let mut take = |key: &str| o.remove(key).unwrap_or(Value::Null);
        let (name, version, given) = (take("name"), take("cniVersion"), take("runtimeConfig"));
        // It has the one that it remembers.
        take("prevResult");
        let network = json!({"name": name, "cniVersion": version, "plugins": [conf]});
        let recorder = format!(
            "#!/bin/sh\n{} > /run/vector/out 2> /run/vector/err; code=$?\ncat /run/vector/err >&2; cat /run/vector/out; exit $code\n",
            self.file()?
        );
        let write = |path: &str, text: &str| self.node.write(path, text).map_err(|e| e.to_string());
        write("/run/vector/net.d/10-vector.conflist", &network.to_string())?;
        write(&format!("/run/vector/bin/{}", self.plugin), &recorder)?;
        self.shell("rm -f /run/vector/out; chmod 755 /run/vector/bin/*")?;
        let var = |key: &str| call["env"][key].as_str().map(str::to_owned);
        let mut env = vec![
            ("CNI_PATH".to_owned(), format!("/run/vector/bin:{}", self.path)),
            ("NETCONFPATH".to_owned(), "/run/vector/net.d".to_owned()),
            ("CNI_IFNAME".to_owned(), var("CNI_IFNAME").unwrap_or_else(|| "eth0".to_owned())),
        ];
        env.extend(var("CNI_ARGS").map(|args| ("CNI_ARGS".to_owned(), args)));
        if !given.is_null() {
            env.push(("CAP_ARGS".to_owned(), given.to_string()));
        }
        let netns = var("CNI_NETNS").unwrap_or_else(|| "/run/netns/pod".to_owned());
        let verb = verb(call).to_ascii_lowercase();
        let tool = tool.display().to_string();
        let (exit, out, err) = self.program("", &env, &[&tool, &verb, name.as_str().unwrap_or_default(), &netns])?;
        let recorded = self.shell("cat /run/vector/out 2>/dev/null || true")?;
        // A result as libcni has read it; an error as the plugin told it.
        let printed = if exit == 0 { &out } else { &recorded };
        let stdout = serde_json::from_str(printed).unwrap_or(Value::Null);
        Ok((
            Done { exit, stdout, state: Value::Null },
            format!("cnitool {verb}: stdout {out} stderr {err}, the plugin {recorded}"),
        ))
    }

    fn expected(&self, call: &Value, done: &Done) -> Result<(), String> {
        let exit = expected_exit(call);
        if done.exit != exit {
            return Err(format!("exit {}, expected {exit}", done.exit));
        }
        let expected = [&call["stdout"], &call["stdout_of"][self.plugin]];
        for e in expected.into_iter().filter(|e| !e.is_null()) {
            if done.stdout.is_null() {
                return Err(format!("not JSON, expected {e}"));
            }
            subset(e, &done.stdout)?;
        }
        Ok(())
    }

    fn check(&self, check: &Value) -> Result<(), String> {
        if check.get("only").is_some_and(|o| !list(o).iter().any(|p| p == self.plugin)) {
            return Ok(());
        }
        let line = check["run"].as_str().ok_or("a check without a line to run")?;
        let result = self.shell(line);
        if check["fails"] == json!(true) {
            return result.map_or(Ok(()), |out| Err(format!("`{line}` should fail, and prints {}", out.trim())));
        }
        let out = result?;
        if let Some(text) = check["text"].as_str()
            && out.trim() != text
        {
            return Err(format!("`{line}` prints {:?}, expected {text:?}", out.trim()));
        }
        if let Some(expected) = check.get("json") {
            let have: Value = serde_json::from_str(&out).map_err(|e| format!("`{line}`: {e}: {out}"))?;
            subset(expected, &have).map_err(|why| format!("`{line}`: {why} in {}", out.trim()))?;
        }
        Ok(())
    }
}

fn subset(expected: &Value, have: &Value) -> Result<(), String> {
    match (expected, have) {
        (Value::Object(e), Value::Object(h)) => {
            for (k, v) in e {
                subset(v, h.get(k).unwrap_or(&Value::Null)).map_err(|why| format!("{k}.{why}"))?;
            }
            Ok(())
        }
        // iproute2 of Debian 12 prints an empty object for each link and address that it leaves out.
        (Value::Array(e), Value::Array(h)) if e.len() == h.iter().filter(|v| **v != json!({})).count() => e
            .iter()
            .zip(h.iter().filter(|v| **v != json!({})))
            .enumerate()
            .try_for_each(|(i, (e, h))| subset(e, h).map_err(|why| format!("{i}.{why}"))),
        (Value::String(s), _) if s == "*" && !have.is_null() => Ok(()),
        (Value::String(s), Value::String(h)) if s.strip_prefix('~').is_some_and(|s| h.contains(s)) => Ok(()),
        _ if expected == have => Ok(()),
        _ => Err(format!(" {expected} expected, {have} found")),
    }
}
