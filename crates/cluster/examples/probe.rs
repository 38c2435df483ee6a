//! Measures the way from a name to a pipe on a real cluster, step by step, in milliseconds.
//!
//! ```text
//! probe [--image IMAGE] [--container NAME] [--pipes N] [--rounds N] WORKLOAD
//! ```
//! The first round is cold where no agent of this release runs in the pod yet; each later one finds it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example that reports")]

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use cluster::{Cluster, ConnectOptions, Progress};
use tokio::io::AsyncReadExt;

struct Arguments {
    workload: String,
    image: String,
    container: Option<String>,
    pipes: usize,
    rounds: usize,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = parse(std::env::args().skip(1))?;
    for round in 0..arguments.rounds {
        if let Err(error) = run(&arguments, round).await {
            eprintln!("{error:#}");
            if let Some(ours) = error.downcast_ref::<cluster::Error>() {
                eprintln!("{}", ours.next_step().unwrap_or("no next step"));
                std::process::exit(i32::from(ours.kind().exit_code()));
            }
            return Err(error);
        }
    }
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> anyhow::Result<Arguments> {
    let mut arguments =
        Arguments { workload: String::new(), image: cluster::default_image(), container: None, pipes: 2, rounds: 3 };
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--image" => arguments.image = value()?,
            "--container" => arguments.container = Some(value()?),
            "--pipes" => arguments.pipes = value()?.parse()?,
            "--rounds" => arguments.rounds = value()?.parse()?,
            _ => arguments.workload = word,
        }
    }
    Ok(arguments)
}

async fn run(arguments: &Arguments, round: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    let steps = Mutex::new(vec![]);
    let mark = |name: &'static str, since: Instant| {
        steps.lock().expect("no panic while held").push((name, since.elapsed()));
    };
    let at = Instant::now();
    let cluster = Cluster::connect(&ConnectOptions::default()).await?;
    mark("connect", at);
    let at = Instant::now();
    let workload = cluster.workload(&arguments.workload).await?;
    mark("workload", at);
    let at = Instant::now();
    let target = cluster.ready_pod(&workload, arguments.container.as_deref(), None).await?;
    mark("pod", at);
    let at = Instant::now();
    let admit = admit();
    let progress = |progress: Progress| println!("  {:>7.1} {progress:?}", ms(at.elapsed()));
    let (agent, admitted) = cluster.enter(&target, &arguments.image, &admit, &progress).await?;
    mark("enter", at);
    let at = Instant::now();
    cluster.admit(&agent, &admit).await?;
    mark("admit again", at);
    let port = u16::try_from(admitted.port)?;
    let mut pipes = Vec::new();
    for _ in 0..arguments.pipes {
        let at = Instant::now();
        pipes.push(cluster.pipe(cluster::Rung::Proxy, &target.pod, &[], port).await?);
        mark("pipe", at);
    }
    let total = start.elapsed();
    let at = Instant::now();
    let ranges = cluster.ranges().await;
    mark("ranges", at);
    let words: Vec<String> = steps
        .lock()
        .expect("no panic while held")
        .iter()
        .map(|(name, took)| format!("{name} {:.1}", ms(*took)))
        .collect();
    println!(
        "round {round}: {workload} in {} ({}): {}; total {:.1} ms",
        target.pod,
        agent.name,
        words.join(", "),
        ms(total)
    );
    if round == 0 {
        println!("  {ranges:?}");
        if let Some(pipe) = pipes.first_mut() {
            let mut early = [0; 64];
            let read = tokio::time::timeout(Duration::from_millis(50), pipe.read(&mut early)).await;
            println!("  the pipe's first bytes: {read:?}");
        }
    }
    Ok(())
}

fn admit() -> wire::Admit {
    wire::Admit {
        session: rand::random::<[u8; 16]>().to_vec(),
        key_hash: rand::random::<[u8; 32]>().to_vec(),
        nonce: rand::random::<[u8; 16]>().to_vec(),
        release: cluster::RELEASE.to_owned(),
        lease_seconds: 5,
        pod_address: true,
        park_seconds: 600,
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
