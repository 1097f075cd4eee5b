use super::*;

/// A file that is valid as it stands; tests change one thing.
const GOOD: &str = r#"config_version = 1
instance = "test"

[source.orders]
kind = "postgres"
url = "postgres://relay:hunter2@localhost/orders"

[sink.events]
kind = "rabbitmq"
url = "amqp://guest:guest@localhost:5672"
"#;

fn read(text: &str) -> Result<Config, Invalid> {
    Config::from_tree(&Node::parse("relay.toml", text)?)
}

/// The error of a file that differs from the good one in one line.
fn error_with(line: &str, changed: &str) -> String {
    assert!(GOOD.contains(line), "the good file has no line {line}");
    read(&GOOD.replacen(line, changed, 1))
        .expect_err("the file is wrong")
        .to_string()
}

/// The error of the good file with lines added to `[source.orders]`.
fn source_error(added: &str) -> String {
    error_with("kind = \"postgres\"", &format!("{added}\nkind = \"postgres\""))
}

fn layered(text: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Result<(Config, Node), Invalid> {
    let file = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
    std::fs::write(file.path(), text).unwrap();
    let root = Layers {
        files: vec![file.path().to_owned()],
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
    }
    .read()?;
    Ok((Config::from_tree(&root)?, root))
}

#[test]
fn the_example_is_valid() {
    let config = read(EXAMPLE).unwrap();
    assert_eq!(config.sink_of("orders"), Some("events"));
}

#[test]
fn every_commented_setting_of_the_example_is_valid_and_the_default() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.contains(" = ") || setting.starts_with('[') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let full = Node::parse("full.toml", &uncommented).unwrap();
    let plain = Node::parse("plain.toml", EXAMPLE).unwrap();
    let settings = |root: &Node| Config::from_tree(root).unwrap().settings(root).unwrap();
    let differing: Vec<_> = settings(&full)
        .into_iter()
        .zip(settings(&plain))
        .filter(|(a, b)| (&a.path, &a.value) != (&b.path, &b.value))
        .map(|(a, _)| a.path)
        .collect();
    assert_eq!(differing, ["instance"]);
}

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_key_it_resembles() {
    assert_eq!(
        source_error("batchsize = 5"),
        "relay.toml:5:1: unknown key `batchsize` in [source.orders]; did you mean `batch_size`?"
    );
    assert_eq!(
        source_error("retry = { backoff = { intial = \"1s\" } }"),
        "relay.toml:5:23: unknown key `intial` in [source.orders.retry.backoff]; did you mean `initial`?"
    );
    assert_eq!(
        error_with("instance", "insatnce"),
        "relay.toml:2:1: unknown key `insatnce`; did you mean `instance`?"
    );
    assert_eq!(
        source_error("lease = { zzzzzz = 1 }"),
        "relay.toml:5:11: unknown key `zzzzzz` in [source.orders.lease]; known here: ttl"
    );
}

#[test]
fn a_wrong_type_is_refused_with_its_path_and_place() {
    assert_eq!(
        source_error("batch_size = \"many\""),
        "relay.toml:5:14: source.orders.batch_size: expected a whole number, found the string \"many\""
    );
    assert_eq!(
        source_error("lease = 15"),
        "relay.toml:5:9: source.orders.lease: expected a table, found the number 15"
    );
    assert_eq!(
        error_with("\"test\"", "true"),
        "relay.toml:2:12: instance: expected a string, found true"
    );
    assert_eq!(
        error_with(
            "[source.orders]",
            "[health]\nready_requires_broker = \"yes\"\n[source.orders]"
        ),
        "relay.toml:5:25: health.ready_requires_broker: expected true or false, found the string \"yes\""
    );
    assert_eq!(
        error_with("\"postgres://relay:hunter2@localhost/orders\"", "5"),
        "relay.toml:6:7: source.orders.url: expected a string, { env = \"NAME\" } or { file = \"PATH\" }, found the number 5"
    );
}

#[test]
fn a_number_without_a_unit_is_refused() {
    assert_eq!(
        source_error("poll_interval = 5"),
        "relay.toml:5:17: source.orders.poll_interval: 5 has no unit; write a duration with its unit, such as \"500ms\", \"5s\", \"1m30s\" or \"24h\""
    );
    assert_eq!(
        source_error("poll_interval = \"5 parsecs\"").split(';').next(),
        Some("relay.toml:5:17: source.orders.poll_interval: 5 parsecs has no unit")
    );
}

#[test]
fn a_value_out_of_its_range_is_refused() {
    assert_eq!(
        source_error("batch_size = 0"),
        "relay.toml:5:14: source.orders.batch_size: 0 is out of range; give a number from 1 to 10000"
    );
    assert!(
        source_error("batch_size = -1")
            .starts_with("relay.toml:5:14: source.orders.batch_size: -1 is out of range")
    );
    assert_eq!(
        source_error("lease = { ttl = \"10ms\" }"),
        "relay.toml:5:17: source.orders.lease.ttl: a lease under 1s is lost by every pause; give at least \"1s\""
    );
}

#[test]
fn a_wrong_choice_is_refused_with_the_choices() {
    assert_eq!(
        error_with("\"postgres\"", "\"postgre\""),
        "relay.toml:5:8: source.orders.kind: \"postgre\" is not one of \"postgres\", \"mysql\", \"sqlite\"; did you mean `postgres`?"
    );
    assert_eq!(
        error_with("kind = \"rabbitmq\"\n", ""),
        "relay.toml:8:1: sink.events: `kind` is missing; add it, one of \"rabbitmq\", \"redis\", \"sql\", \"memory\", \"stdout\""
    );
}

#[test]
fn what_is_missing_is_named_with_its_section() {
    assert_eq!(
        error_with("url = \"postgres://relay:hunter2@localhost/orders\"\n", ""),
        "relay.toml:4:1: source.orders: `url` is missing; add it"
    );
    assert_eq!(
        error_with("config_version = 1\n", ""),
        "relay.toml:1:1: the file: `config_version` is missing; add it"
    );
    assert_eq!(
        read("config_version = 1\n[source]\n[sink]\n")
            .unwrap_err()
            .to_string(),
        "relay.toml:2:1: source: no database is given; add a section [source.NAME]"
    );
}

#[test]
fn what_is_no_toml_is_refused_with_its_place() {
    let error = error_with("[source.orders]", "[source.orders");
    assert!(
        error.starts_with("relay.toml:4:15: this is not TOML: "),
        "{error}"
    );
    let error = error_with("instance = \"test\"", "instance = \"a\"\ninstance = \"b\"");
    assert!(
        error.starts_with("relay.toml:3:1: this is not TOML: duplicate key"),
        "{error}"
    );
}

#[test]
fn a_format_of_another_version_is_refused() {
    assert_eq!(
        error_with("config_version = 1", "config_version = 2"),
        "relay.toml:1:18: config_version: this relay reads version 1; write config_version = 1"
    );
}

#[test]
fn a_url_of_the_wrong_kind_is_refused_without_showing_it() {
    let error = error_with("postgres://relay:hunter2", "mysql://relay:hunter2");
    assert_eq!(
        error,
        "relay.toml:6:7: source.orders.url: the URL must begin with `postgres://…` or `postgresql://…`"
    );
    assert_eq!(
        error_with("postgres://relay:hunter2@localhost/orders", "${DATABASE_URL}"),
        "relay.toml:6:7: source.orders.url: `${…}` is not replaced here; write { env = \"NAME\" } or { file = \"PATH\" }"
    );
    assert_eq!(
        error_with(
            "\"postgres://relay:hunter2@localhost/orders\"",
            "{ envv = \"X\" }"
        ),
        "relay.toml:6:9: unknown key `envv` in [source.orders.url]; did you mean `env`?"
    );
}

#[test]
fn a_route_must_lead_from_a_source_to_a_sink() {
    let with = |route: &str| read(&format!("{GOOD}{route}")).unwrap_err().to_string();
    assert_eq!(
        with("[[route]]\nfrom = \"order\"\nsink = \"events\"\n"),
        "relay.toml:12:8: route.0.from: there is no [source.order]; did you mean `orders`?"
    );
    assert_eq!(
        with("[[route]]\nfrom = \"orders\"\nsink = \"event\"\n"),
        "relay.toml:13:8: route.0.sink: there is no [sink.event]; did you mean `events`?"
    );
    assert_eq!(
        with("[sink.other]\nkind = \"stdout\"\n"),
        "relay.toml:4:1: source.orders: no route leads to one of the sinks; add [[route]] with from = \"orders\" and sink = NAME"
    );
}

#[test]
fn the_environment_wins_over_files_and_set_wins_over_the_environment() {
    let text = GOOD.replace(
        "kind = \"postgres\"",
        "kind = \"postgres\"\nbatch_size = 7\npoll_interval = \"2s\"",
    );
    let environment = [
        ("OUTBOX_SOURCE__ORDERS__BATCH_SIZE", "100"),
        ("OUTBOX_SOURCE__ORDERS__POLL_INTERVAL", "3s"),
        ("OUTBOX_HEALTH__READY_REQUIRES_BROKER", "true"),
        ("OUTBOX_INSTANCE", "from-environment"),
        ("OUTBOX_CRASH", "not ours"),
        ("HOME", "/root"),
    ];
    let (config, root) = layered(&text, &environment, &["source.orders.batch_size=200"]).unwrap();
    let database = config.source["orders"].database();
    assert_eq!(database.batch_size, 200);
    assert_eq!(database.poll_interval.as_secs(), 3);
    assert!(config.health.ready_requires_broker);
    assert_eq!(config.instance, "from-environment");

    let origins: BTreeMap<String, String> = config
        .settings(&root)
        .unwrap()
        .into_iter()
        .map(|setting| (setting.path, setting.origin))
        .collect();
    assert_eq!(
        origins["source.orders.batch_size"],
        "--set source.orders.batch_size"
    );
    assert_eq!(
        origins["source.orders.poll_interval"],
        "environment variable OUTBOX_SOURCE__ORDERS__POLL_INTERVAL"
    );
    assert!(origins["source.orders.kind"].ends_with(":5:8"), "{origins:?}");
    assert_eq!(origins["source.orders.lease.ttl"], "default");
}

#[test]
fn later_files_win_and_a_folder_is_read_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("10-base.toml"), GOOD).unwrap();
    std::fs::write(
        folder.path().join("20-local.toml"),
        "[source.orders]\nurl = { env = \"DB\" }\n[sink.events]\nexchange = \"orders\"\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("readme.txt"), "not a configuration").unwrap();
    let layers = Layers {
        files: vec![folder.path().to_owned()],
        ..Layers::default()
    };
    let config = Config::load(&layers).unwrap();
    assert_eq!(
        format!("{:?}", config.source["orders"].database().url),
        "{ env = \"DB\" }"
    );
    assert!(matches!(&config.sink["events"], sink::Sink::RabbitMq(sink) if sink.exchange == "orders"));
}

#[test]
fn an_error_in_the_environment_or_in_set_names_it() {
    let error = |environment: &[(&str, &str)], arguments: &[&str]| {
        layered(GOOD, environment, arguments).unwrap_err().to_string()
    };
    assert_eq!(
        error(&[("OUTBOX_SOURCE__ORDERS__BATCHSIZE", "1")], &[]),
        "environment variable OUTBOX_SOURCE__ORDERS__BATCHSIZE: unknown key `batchsize` in [source.orders]; did you mean `batch_size`?"
    );
    assert_eq!(
        error(&[("OUTBOX_SOURCE__ORDERS__BATCH_SIZE", "many")], &[]),
        "environment variable OUTBOX_SOURCE__ORDERS__BATCH_SIZE: source.orders.batch_size: expected a whole number, found the string \"many\""
    );
    assert_eq!(
        error(&[], &["ops.listen=here"]),
        "--set ops.listen: ops.listen: \"here\" is no address; write an IP address and a port, such as \"127.0.0.1:9470\""
    );
    assert_eq!(
        error(&[], &["ops.listen"]),
        "--set ops.listen has no value; write it as --set source.orders.batch_size=100"
    );
}

#[test]
fn a_missing_file_says_how_to_write_one() {
    let layers = Layers {
        files: vec!["/no/such/file.toml".into()],
        ..Layers::default()
    };
    assert_eq!(
        Config::load(&layers).unwrap_err().to_string(),
        "the file /no/such/file.toml cannot be read (No such file or directory (os error 2)); name the right file with --config, or write one with `outbox-relay config init`"
    );
}

#[test]
fn a_secret_is_shown_neither_as_a_value_nor_in_an_error() {
    let root = Node::parse("relay.toml", GOOD).unwrap();
    let config = Config::from_tree(&root).unwrap();
    let shown = format!(
        "{config:?}\n{}",
        serde_json::to_string(&config.settings(&root).unwrap()).unwrap()
    );
    assert!(!shown.contains("hunter2"), "{shown}");
    let file = Node::parse(
        "relay.toml",
        &GOOD.replace(
            "\"postgres://relay:hunter2@localhost/orders\"",
            "{ file = \"/run/db\" }",
        ),
    )
    .unwrap();
    let settings = Config::from_tree(&file).unwrap().settings(&file).unwrap();
    let url = settings
        .iter()
        .find(|setting| setting.path == "source.orders.url")
        .unwrap();
    assert_eq!(url.value, "{ file = \"/run/db\" }");
    let error = error_with(
        "kind = \"postgres\"",
        "kind = \"postgres\"\nbatch_size = \"postgres://u:hunter2@h/d\"",
    );
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_secret_may_be_given_as_a_file_by_the_environment() {
    let (config, _) = layered(
        GOOD,
        &[("OUTBOX_SOURCE__ORDERS__URL_FILE", "/run/secrets/db")],
        &[],
    )
    .unwrap();
    assert_eq!(
        format!("{:?}", config.source["orders"].database().url),
        "{ file = \"/run/secrets/db\" }"
    );
    let (config, _) = layered(GOOD, &[], &["sink.events.url={ env = \"AMQP\" }"]).unwrap();
    assert_eq!(
        format!("{:?}", config.sink["events"].url().unwrap().0),
        "{ env = \"AMQP\" }"
    );
}
