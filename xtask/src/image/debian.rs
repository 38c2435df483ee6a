//! Images of servers as Debian ships them.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use oci::{File, ImageBuilder, Layer};

use crate::image::cached;
use crate::shell;

pub(crate) const NAMES: [&str; 4] = ["nginx", "postgres", "redis", "jre"];

/// Debian's release; its packages' versions follow the mirror, so an image may differ from one built last month.
const SUITE: &str = "bookworm";

struct Recipe {
    packages: &'static str,
    user: &'static str,
    port: Option<u16>,
    entrypoint: &'static [&'static str],
    files: fn() -> Vec<File>,
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n\
postgres:x:70:70::/var/lib/postgresql:/bin/sh\nredis:x:999:999::/var/lib/redis:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\npostgres:x:70:\nredis:x:999:\nnogroup:x:65534:\n";

fn recipe(name: &str) -> Option<Recipe> {
    Some(match name {
        "nginx" => Recipe {
            packages: "nginx-light,dash,coreutils,sed,grep",
            user: "0:0",
            port: Some(80),
            entrypoint: &["nginx", "-c", "/etc/nginx/testbed.conf", "-g", "daemon off;"],
            files: nginx,
        },
        "postgres" => Recipe {
            packages: "postgresql-15,dash,coreutils,sed,grep",
            user: "70:70",
            port: Some(5432),
            entrypoint: &["/usr/local/bin/serve"],
            files: postgres,
        },
        "redis" => Recipe {
            packages: "redis-server,redis-tools,dash,coreutils",
            user: "999:999",
            port: Some(6379),
            entrypoint: &["redis-server", "--bind", "* -::*", "--protected-mode", "no", "--dir", "/var/lib/redis"],
            files: || vec![File::directory("/var/lib/redis", 0o750).owner(999, 999)],
        },
        "jre" => Recipe {
            packages: "openjdk-17-jre-headless,dash,coreutils",
            user: "65534:65534",
            port: None,
            entrypoint: &["/usr/lib/jvm/java-17-openjdk-amd64/bin/java"],
            files: Vec::new,
        },
        _ => return None,
    })
}

fn nginx() -> Vec<File> {
    let config = "user www-data;\nworker_processes 2;\npid /run/nginx.pid;\nerror_log /dev/stderr;\n\
        events { worker_connections 1024; }\n\
        http { access_log /dev/stdout; include /etc/nginx/mime.types;\n\
        server { listen 80; listen [::]:80; root /var/www/html; } }\n";
    vec![
        File::new("/etc/nginx/testbed.conf", 0o644, config),
        File::new("/var/www/html/index.html", 0o644, "nginx of the testbed\n"),
        File::directory("/var/lib/nginx", 0o755).owner(33, 33),
    ]
}

fn postgres() -> Vec<File> {
    let serve = "#!/bin/sh\n# Makes a database at the first start; trusts everybody, as only tests reach it.\nset -e\n\
        export PGDATA=${PGDATA:-/var/lib/postgresql/data} PATH=/usr/lib/postgresql/15/bin:$PATH\n\
        if [ ! -s \"$PGDATA/PG_VERSION\" ]; then\n  initdb --auth=trust --username=postgres --no-sync >/dev/null\n  \
        echo 'host all all all trust' >> \"$PGDATA/pg_hba.conf\"\nfi\n\
        exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp \"$@\"\n";
    vec![
        File::new("/usr/local/bin/serve", 0o755, serve),
        File::directory("/var/lib/postgresql", 0o750).owner(70, 70),
        File::directory("/var/run/postgresql", 0o775).owner(70, 70),
    ]
}

/// `localhost/NAME:1`, as an archive in the cache.
pub(crate) fn image(name: &str) -> Result<PathBuf> {
    let recipe = recipe(name).with_context(|| format!("no image {name}: there are {}", NAMES.join(", ")))?;
    cached(name, &[SUITE.as_bytes()], || {
        let start = Instant::now();
        eprintln!("building the image {name} from {} of Debian {SUITE}", recipe.packages);
        let image = build(name, &recipe)?;
        eprintln!("built {name} in {:.0} s", start.elapsed().as_secs_f32());
        Ok(image)
    })
}

fn build(name: &str, recipe: &Recipe) -> Result<ImageBuilder> {
    let scratch = std::env::temp_dir().join(format!("stead-image-{name}-{}.tar", std::process::id()));
    let mut command = shell::command("mmdebstrap --quiet --variant=extract --format=tar");
    command.arg(format!("--include={}", recipe.packages)).args(slimming()).arg(SUITE).arg(&scratch);
    let made = shell::output(&mut command).context("mmdebstrap could not fetch the packages");
    let layer = made.and_then(|_| Ok(Layer::from_tar(std::io::BufReader::new(std::fs::File::open(&scratch)?))?));
    let _ = std::fs::remove_file(&scratch); // the failure above matters more
    let mut files = vec![
        File::new("/etc/passwd", 0o644, PASSWD),
        File::new("/etc/group", 0o644, GROUP),
        File::directory("/run", 0o755),
        File::directory("/tmp", 0o1777),
    ];
    files.extend((recipe.files)());
    let mut image = ImageBuilder::new(format!("localhost/{name}:1"))
        .layer(layer?)
        .layer(Layer::from_files(files)?)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .user(recipe.user)
        .entrypoint(recipe.entrypoint.iter().copied());
    if let Some(port) = recipe.port {
        image = image.exposed_port(format!("{port}/tcp"));
    }
    Ok(image)
}

/// No manuals and translations: a third of the size.
fn slimming() -> impl Iterator<Item = String> {
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"]
        .into_iter()
        .map(|path| format!("--dpkgopt=path-exclude={path}"))
}
