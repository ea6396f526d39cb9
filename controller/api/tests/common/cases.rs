//! What the API accepts and refuses. Each case is a merge patch onto [`base`](super::base), for updates onto the old object.

/// One case.
pub(crate) struct Case {
    /// Patch of the object that exists before; none: the case is a creation.
    pub(crate) old: Option<&'static str>,
    /// Patch of what is sent.
    pub(crate) new: &'static str,
    /// What the refusal must say, all of it; empty: accepted.
    pub(crate) says: &'static [&'static str],
}

const fn accept(new: &'static str) -> Case {
    Case { old: None, new, says: &[] }
}

const fn refuse(new: &'static str, says: &'static [&'static str]) -> Case {
    Case { old: None, new, says }
}

const fn accept_update(old: &'static str, new: &'static str) -> Case {
    Case { old: Some(old), new, says: &[] }
}

const fn refuse_update(old: &'static str, new: &'static str, says: &'static [&'static str]) -> Case {
    Case { old: Some(old), new, says }
}

/// All cases.
pub(crate) fn all() -> impl Iterator<Item = &'static Case> {
    [OBJECT, STORAGE, RESOURCES, DURABILITY, PARAMETERS, LIBRARIES, HBA, BACKUP, INITDB, PLACEMENT, UPDATES]
        .into_iter()
        .flatten()
}

const OBJECT: &[Case] = &[
    accept("{}"),
    // 40 characters, and 41.
    accept("metadata: {name: a234567890123456789012345678901234567890}"),
    refuse(
        "metadata: {name: a2345678901234567890123456789012345678901}",
        &["metadata.name must have at most 40 characters"],
    ),
    refuse("metadata: {name: 1base}", &["metadata.name must start with a letter"]),
    refuse("metadata: {name: base.x}", &["metadata.name must start with a letter", "'-'"]),
    accept("metadata: {name: base-ro}"),
    accept(r#"spec: {version: "11"}"#),
    accept(r#"spec: {version: "18"}"#),
    refuse(r#"spec: {version: "10"}"#, &["spec.version: Unsupported value: \"10\""]),
    refuse(r#"spec: {version: "19"}"#, &["spec.version: Unsupported value: \"19\""]),
    refuse(r#"spec: {version: "17.2"}"#, &["spec.version: Unsupported value: \"17.2\""]),
    refuse("spec: {version: 17}", &["spec.version", "must be of type string"]),
    refuse("spec: {version: null}", &["spec.version: Required value"]),
    refuse("spec: {storage: null}", &["spec.storage: Required value"]),
    refuse("spec: {storagge: 1Gi}", &["unknown field \"spec.storagge\""]),
    accept("spec: {replicas: 1}"),
    accept("spec: {replicas: 9}"),
    refuse("spec: {replicas: 0}", &["spec.replicas in body should be greater than or equal to 1"]),
    refuse("spec: {replicas: 10}", &["spec.replicas in body should be less than or equal to 9"]),
    accept("spec: {image: 'postgres:17.6'}"),
    accept(
        "spec: {image: 'example.org:5000/team/postgres-gis:17_1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}",
    ),
    accept("spec: {image: localhost/postgres}"),
    refuse(
        "spec: {image: 'postgres 17'}",
        &["spec.image", "must be an image reference such as postgres:17.6"],
    ),
    refuse("spec: {image: 'https://example.org/postgres'}", &["spec.image", "must be an image reference"]),
    refuse("spec: {image: ''}", &["spec.image", "must be an image reference"]),
    accept("spec: {failover: tolerant, deletionPolicy: Delete}"),
    refuse("spec: {failover: quick}", &["spec.failover: Unsupported value: \"quick\""]),
    refuse("spec: {deletionPolicy: Keep}", &["spec.deletionPolicy: Unsupported value: \"Keep\""]),
];

const STORAGE: &[Case] = &[
    accept("spec: {storage: 100Gi}"),
    accept("spec: {storage: 1.5Ti}"),
    accept("spec: {storage: '20000000'}"),
    accept("spec: {storage: 16Mi}"),
    refuse(
        "spec: {storage: 100GB}",
        &["spec.storage", "storage must be a Kubernetes quantity such as 100Gi"],
    ),
    refuse("spec: {storage: ''}", &["spec.storage", "storage must be a Kubernetes quantity"]),
    refuse("spec: {storage: 100}", &["spec.storage", "must be of type string"]),
    refuse("spec: {storage: 100m}", &["spec.storage", "at least 16Mi", "m would be thousandths"]),
    refuse("spec: {storage: -10Gi}", &["spec.storage", "at least 16Mi"]),
    refuse("spec: {storage: '000000000000000000000000000000001Gi'}", &["spec.storage", "Too long"]),
    accept("spec: {storageClassName: fast-ssd.example}"),
    refuse("spec: {storageClassName: Fast_SSD}", &["spec.storageClassName", "must be the name of an object"]),
    refuse("spec: {storageClassName: ''}", &["spec.storageClassName", "leave it out for the default"]),
];

const RESOURCES: &[Case] = &[
    accept("spec: {resources: {}}"),
    accept("spec: {resources: {requests: {cpu: 2, memory: 4Gi}, limits: {cpu: '2.0', memory: 4096Mi}}}"),
    accept("spec: {resources: {requests: {cpu: 500m}, limits: {memory: 128Mi}}}"),
    accept("spec: {resources: {limits: {hugepages-2Mi: 1Gi, memory: 2Gi, ephemeral-storage: 1Gi}}}"),
    refuse(
        "spec: {resources: {requests: {memory: 4Gi}, limits: {memory: 2Gi}}}",
        &["spec.resources", "requests.memory is above limits.memory: lower the request or raise the limit"],
    ),
    refuse(
        "spec: {resources: {requests: {cpu: 2}, limits: {cpu: 500m}}}",
        &["spec.resources", "requests.cpu is above limits.cpu"],
    ),
    refuse("spec: {resources: {limits: {memory: 127Mi}}}", &["limits.memory must be at least 128Mi"]),
    refuse("spec: {resources: {limits: {memory: 8}}}", &["limits.memory must be at least 128Mi", "Gi"]),
    refuse(
        "spec: {resources: {limits: {memory: 8GB}}}",
        &["spec.resources.limits.memory", "must be a Kubernetes quantity of 0 or more"],
    ),
    refuse(
        "spec: {resources: {requests: {cpu: -1}}}",
        &["spec.resources.requests.cpu", "must be a Kubernetes quantity of 0 or more"],
    ),
    refuse("spec: {resources: {limits: {gpu: 1}}}", &["unknown field \"spec.resources.limits.gpu\""]),
    accept("spec: {agent: {resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi}}}}"),
    refuse("spec: {agent: {resources: {limits: {memory: 16Mi}}}}", &["limits.memory must be at least 32Mi"]),
    refuse(
        "spec: {agent: {resources: {requests: {cpu: 1}, limits: {cpu: 10m}}}}",
        &["spec.agent.resources", "requests.cpu is above limits.cpu"],
    ),
];

const DURABILITY: &[Case] = &[
    accept("spec: {replicas: 1, durability: {}}"),
    accept("spec: {replicas: 1, durability: {mode: preferred}}"),
    accept("spec: {replicas: 1, durability: {mode: async}}"),
    accept("spec: {replicas: 2, durability: {mode: strict}}"),
    accept("spec: {replicas: 3, durability: {mode: strict, synchronousReplicas: 2}}"),
    accept("spec: {replicas: 3, durability: {mode: async, maximumLag: 1048576}}"),
    // Without replicas in the manifest the default of 3 counts.
    accept("spec: {durability: {mode: strict, synchronousReplicas: 2}}"),
    refuse("spec: {durability: {synchronousReplicas: 3}}", &["must be at most replicas - 1"]),
    refuse(
        "spec: {replicas: 1, durability: {mode: strict}}",
        &["spec.durability.mode", "strict needs replicas of 2 or more", "raise replicas or use preferred"],
    ),
    refuse(
        "spec: {replicas: 2, durability: {mode: strict, synchronousReplicas: 2}}",
        &["spec.durability.synchronousReplicas", "must be at most replicas - 1: lower it or raise replicas"],
    ),
    refuse("spec: {replicas: 2, durability: {synchronousReplicas: 2}}", &["must be at most replicas - 1"]),
    refuse("spec: {durability: {synchronousReplicas: 0}}", &["should be greater than or equal to 1"]),
    refuse("spec: {durability: {mode: safe}}", &["spec.durability.mode: Unsupported value: \"safe\""]),
    refuse("spec: {durability: {maximumLag: -1}}", &["should be greater than or equal to 0"]),
    accept("spec: {parameters: {synchronous_commit: remote_apply}}"),
    accept("spec: {durability: {mode: async}, parameters: {synchronous_commit: 'off'}}"),
    refuse(
        "spec: {parameters: {synchronous_commit: 'off'}}",
        &["spec.parameters", "synchronous_commit must be on or remote_apply", "durability.mode to async"],
    ),
    refuse(
        "spec: {durability: {mode: strict}, parameters: {synchronous_commit: local}}",
        &["synchronous_commit must be on or remote_apply"],
    ),
];

const PARAMETERS: &[Case] = &[
    accept("spec: {parameters: {}}"),
    accept("spec: {parameters: {work_mem: 64MB, auto_explain.log_min_duration: 1s, a.b_1.c$: ''}}"),
    accept("spec: {parameters: {search_path: '\"$user\", public', log_line_prefix: \"%m\\t[%p] \"}}"),
    refuse(
        "spec: {parameters: {max_connections: 200}}",
        &["spec.parameters.max_connections", "must be of type string"],
    ),
    refuse(
        "spec: {parameters: {fsync: 'off', port: '5433', work_mem: 64MB}}",
        &[
            "spec.parameters",
            "remove what the operator sets itself",
            "fsync (acknowledged rows would be lost)",
            "port (",
        ],
    ),
    refuse("spec: {parameters: {include_dir: /tmp}}", &["include_dir ("]),
    refuse(
        "spec: {parameters: {FSYNC: 'off'}}",
        &["spec.parameters", "write the names of settings in lower case"],
    ),
    refuse(
        "spec: {parameters: {\"work_mem = 1\\nfsync\": 'off'}}",
        &["write the names of settings in lower case"],
    ),
    refuse("spec: {parameters: {'auto_explain.': 'off'}}", &["write the names of settings in lower case"]),
    refuse("spec: {parameters: {'': 'off'}}", &["in lower case"]),
    refuse(
        "spec: {parameters: {shared_preload_libraries: pg_stat_statements}}",
        &["list the libraries in sharedPreloadLibraries instead"],
    ),
    refuse("spec: {parameters: {work_mem: \"1MB\\nfsync = off\"}}", &["a value must be one line"]),
    refuse("spec: {parameters: {work_mem: \"1MB\\rfsync = off\"}}", &["a value must be one line"]),
    accept("spec: {parameters: {ssl_min_protocol_version: TLSv1.3}}"),
    refuse("spec: {parameters: {ssl_min_protocol_version: TLSv1}}", &["must be TLSv1.2 or TLSv1.3"]),
    refuse("spec: {parameters: {ssl_min_protocol_version: ''}}", &["must be TLSv1.2 or TLSv1.3"]),
    accept("spec: {parameters: {max_wal_senders: '20', max_replication_slots: '50'}}"),
    refuse("spec: {parameters: {max_wal_senders: '5'}}", &["must be numbers of 20 or more"]),
    refuse("spec: {parameters: {max_replication_slots: many}}", &["must be numbers of 20 or more"]),
];

const LIBRARIES: &[Case] = &[
    accept("spec: {sharedPreloadLibraries: [pg_stat_statements, timescaledb-2.17]}"),
    refuse(
        "spec: {sharedPreloadLibraries: ['pg_stat_statements,auto_explain']}",
        &["spec.sharedPreloadLibraries[0]", "name one library an entry"],
    ),
    refuse("spec: {sharedPreloadLibraries: [../evil]}", &["name one library an entry"]),
    refuse("spec: {sharedPreloadLibraries: [a, b, a]}", &["spec.sharedPreloadLibraries[2]: Duplicate value"]),
];

const HBA: &[Case] = &[
    accept("spec: {hba: ['hostssl app app 10.0.0.0/8 scram-sha-256']}"),
    accept(
        "spec: {hba: ['host all all 0.0.0.0/0 reject', \"hostssl\\tall  app,+readers   .example.org cert  map=m clientcert=verify-full\"]}",
    ),
    accept(
        "spec: {hba: ['hostssl \"my db\",other \"A B\" 192.0.2.0 255.255.255.0 ldap ldapserver=ldap.example.org ldapprefix=\"cn=a b\"']}",
    ),
    accept(
        "spec: {hba: ['hostssl replication_log all ::1/128 scram-sha-256', 'hostssl app app samenet scram-sha-256']}",
    ),
    accept("spec: {hba: ['hostssl all postgres_exporter all scram-sha-256']}"),
    // Not the form: type, comment, continuation, second line, quotes inside a name, several methods, a file.
    refuse(
        "spec: {hba: ['local all all scram-sha-256']}",
        &["spec.hba[0]", "TYPE DATABASE USER ADDRESS METHOD"],
    ),
    refuse("spec: {hba: ['']}", &["spec.hba[0]", "TYPE DATABASE USER ADDRESS METHOD"]),
    refuse("spec: {hba: ['include /tmp/hba']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    refuse("spec: {hba: ['# a comment']}", &["no comment"]),
    refuse("spec: {hba: ['hostssl all all all reject # why']}", &["no comment"]),
    refuse("spec: {hba: ['hostssl all all all scram-sha-256 \\']}", &["no line break"]),
    refuse(
        "spec: {hba: [\"hostssl all all all reject\\nhost all all all trust\"]}",
        &["spec.hba[0]", "no line break"],
    ),
    refuse("spec: {hba: [\"hostssl all all all reject\\n\"]}", &["no line break"]),
    refuse("spec: {hba: ['hostssl all all all tr\"us\"t']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    refuse("spec: {hba: ['hostssl all all all \"trust\"']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    refuse("spec: {hba: ['hostssl all all all trust,cert']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    refuse("spec: {hba: ['hostssl all @users all cert']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    refuse("spec: {hba: ['hostssl all all all ident']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    refuse("spec: {hba: ['hostssl all all cert']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    // Methods.
    refuse(
        "spec: {hba: ['hostssl all all all cert', 'host all all all trust']}",
        &["spec.hba[1]", "trust, md5 and password"],
    ),
    refuse("spec: {hba: ['hostssl all all 10.0.0.0 255.0.0.0 md5']}", &["use scram-sha-256 or cert"]),
    refuse("spec: {hba: ['hostssl all all all password map=m']}", &["use scram-sha-256 or cert"]),
    // Replication.
    refuse(
        r#"spec: {hba: ['hostssl "replication" app samenet scram-sha-256']}"#,
        &["remove replication from the line"],
    ),
    refuse("spec: {hba: ['hostnossl all all all scram-sha-256']}", &["with TYPE hostssl or host"]),
    refuse(
        "spec: {hba: ['hostssl replication all all scram-sha-256']}",
        &["remove replication from the line"],
    ),
    refuse(
        "spec: {hba: ['hostssl \"a b\",replication,c all all scram-sha-256']}",
        &["remove replication from the line"],
    ),
    refuse("spec: {hba: ['hostssl repl\"ication\" all all cert']}", &["TYPE DATABASE USER ADDRESS METHOD"]),
    // The operator's roles.
    refuse("spec: {hba: ['hostssl all postgres all scram-sha-256']}", &["name the application's own roles"]),
    refuse(
        "spec: {hba: ['hostssl \"a b\",c app,\"postgres\" all cert']}",
        &["name the application's own roles"],
    ),
    refuse(
        "spec: {hba: ['hostssl all pgwarden_replication all cert']}",
        &["name the application's own roles"],
    ),
];

const BACKUP: &[Case] = &[
    accept("spec: {backup: {schedule: 0 2 * * *}}"),
    accept("spec: {backup: {schedule: '*/15 0-6,22,23 1,15 JAN-mar mon-fri/2'}}"),
    accept(
        "spec: {backup: {schedule: '@daily', timeZone: Europe/Berlin, retention: 3650, s3Bucket: my.backups-1}}",
    ),
    accept("spec: {backup: {schedule: '@every 1h30m', timeZone: Etc/GMT+2}}"),
    accept("spec: {backup: {schedule: 5 4 ? * 0, timeZone: UTC}}"),
    refuse("spec: {backup: {}}", &["spec.backup.schedule: Required value"]),
    refuse("spec: {backup: {schedule: 0 2 * *}}", &["spec.backup.schedule", "must have five fields"]),
    refuse("spec: {backup: {schedule: 0 0 2 * * *}}", &["must have five fields", "'0 2 * * *'"]),
    refuse("spec: {backup: {schedule: 60 2 * * *}}", &["must have five fields"]),
    refuse("spec: {backup: {schedule: 0 24 * * *}}", &["must have five fields"]),
    refuse("spec: {backup: {schedule: 0 2 32 * *}}", &["must have five fields"]),
    refuse("spec: {backup: {schedule: 0 2 * 13 *}}", &["must have five fields"]),
    refuse("spec: {backup: {schedule: 0 2 * * 7}}", &["must have five fields"]),
    refuse("spec: {backup: {schedule: daily}}", &["a macro such as @daily"]),
    refuse("spec: {backup: {schedule: 'TZ=UTC 0 2 * * *'}}", &["must have five fields"]),
    refuse(
        "spec: {backup: {schedule: '@daily', timeZone: Berlin!}}",
        &["spec.backup.timeZone", "such as Europe/Berlin"],
    ),
    refuse("spec: {backup: {schedule: '@daily', timeZone: Local}}", &["the name of a time zone"]),
    refuse("spec: {backup: {schedule: '@daily', timeZone: ../etc/passwd}}", &["the name of a time zone"]),
    refuse(
        "spec: {backup: {schedule: '@daily', retention: 0}}",
        &["spec.backup.retention", "greater than or equal to 1"],
    ),
    refuse("spec: {backup: {schedule: '@daily', retention: 3651}}", &["less than or equal to 3650"]),
    refuse("spec: {backup: {schedule: '@daily', retention: 7d}}", &["must be of type integer"]),
    refuse(
        "spec: {backup: {schedule: '@daily', s3Bucket: My_Backups}}",
        &["spec.backup.s3Bucket", "3 to 63 lower-case"],
    ),
    refuse("spec: {backup: {schedule: '@daily', s3Bucket: 's3://my-backups'}}", &["without s3:// or a path"]),
    refuse("spec: {backup: {schedule: '@daily', s3Bucket: my-backups/pg}}", &["without s3:// or a path"]),
    refuse("spec: {backup: {schedule: '@daily', s3Bucket: a..b}}", &["must be a bucket's name"]),
    refuse("spec: {backup: {schedule: '@daily', s3Bucket: 192.0.2.10}}", &["must be a bucket's name"]),
    refuse("spec: {backup: {schedule: '@daily', s3Bucket: ab}}", &["must be a bucket's name"]),
];

const INITDB: &[Case] = &[
    accept("spec: {initdb: {}}"),
    accept("spec: {initdb: {locale: en_US.UTF-8, provider: icu, encoding: UTF8}}"),
    accept("spec: {version: '17', initdb: {provider: builtin, locale: C.UTF-8}}"),
    accept("spec: {version: '11', initdb: {provider: libc}}"),
    refuse(
        "spec: {version: '16', initdb: {provider: builtin}}",
        &["spec.initdb.provider", "icu needs version 15 or newer, builtin needs 17 or newer"],
    ),
    refuse("spec: {version: '14', initdb: {provider: icu}}", &["icu needs version 15 or newer"]),
    refuse("spec: {initdb: {provider: glibc}}", &["spec.initdb.provider: Unsupported value: \"glibc\""]),
    refuse(
        "spec: {initdb: {locale: '--help'}}",
        &["spec.initdb.locale", "must be a locale's name such as C.UTF-8"],
    ),
    refuse("spec: {initdb: {encoding: 'UTF 8'}}", &["spec.initdb.encoding", "such as UTF8 or LATIN1"]),
];

const PLACEMENT: &[Case] = &[
    accept(
        "spec: {nodeSelector: {disk: ssd}, tolerations: [{operator: Exists}], priorityClassName: high, imagePullSecrets: [{name: a}, {name: b}]}",
    ),
    refuse("spec: {priorityClassName: High!}", &["spec.priorityClassName", "must be the name of an object"]),
    refuse(
        "spec: {imagePullSecrets: [{name: a}, {name: a}]}",
        &["spec.imagePullSecrets[1]: Duplicate value"],
    ),
    refuse("spec: {imagePullSecrets: [{}]}", &["spec.imagePullSecrets[0].name: Required value"]),
    refuse(
        "spec: {tolerations: [{operator: true}]}",
        &["spec.tolerations[0].operator", "must be of type string"],
    ),
    refuse(
        "spec: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {}}}}",
        &["nodeSelectorTerms: Required value"],
    ),
    refuse("spec: {affinity: {podAfinity: {}}}", &["unknown field \"spec.affinity.podAfinity\""]),
    accept(
        "spec: {service: {type: LoadBalancer, annotations: {a/b: c}}, serviceAccount: {annotations: {d/e: f}}}",
    ),
    refuse(
        "spec: {service: {type: ExternalName}}",
        &["spec.service.type: Unsupported value: \"ExternalName\""],
    ),
];

const UPDATES: &[Case] = &[
    accept_update("{}", "{}"),
    accept_update("{}", "spec: {storage: 20Gi, version: '18', replicas: 5}"),
    accept_update("spec: {storage: 1024Mi}", "spec: {storage: 1Gi}"),
    refuse_update(
        "spec: {storage: 10Gi}",
        "spec: {storage: 10G}",
        &["spec.storage", "can grow but not shrink: put the old size back"],
    ),
    refuse_update("spec: {storage: 100Gi}", "spec: {storage: 100}", &["must be of type string"]),
    refuse_update(
        "spec: {version: '17'}",
        "spec: {version: '16'}",
        &["spec.version", "can't go down", "restore a backup"],
    ),
    // Between 9 and 10 a comparison of texts would be wrong; there is no such pair among 11 to 18, but a status may name any.
    accept_update("{spec: {version: '17'}, status: {rollbackVersion: '16'}}", "spec: {version: '16'}"),
    refuse_update(
        "{spec: {version: '17'}, status: {rollbackVersion: '16'}}",
        "spec: {version: '15'}",
        &["can't go down"],
    ),
    refuse_update(
        "spec: {storageClassName: a}",
        "spec: {storageClassName: b}",
        &["spec.storageClassName", "can't change: put the old value back"],
    ),
    refuse_update("{}", "spec: {storageClassName: b}", &["storageClassName can't change"]),
    refuse_update(
        "spec: {storageClassName: a}",
        "spec: {storageClassName: null}",
        &["storageClassName can't change"],
    ),
    accept_update("spec: {initdb: {locale: C}}", "spec: {initdb: {locale: C}, replicas: 2}"),
    refuse_update(
        "spec: {initdb: {locale: C}}",
        "spec: {initdb: {locale: C.UTF-8}}",
        &["spec.initdb", "it is used once"],
    ),
    refuse_update("{}", "spec: {initdb: {encoding: UTF8}}", &["initdb can't change"]),
    refuse_update("spec: {initdb: {}}", "spec: {initdb: null}", &["initdb can't change"]),
    refuse_update(
        "spec: {replicas: 3, durability: {mode: strict, synchronousReplicas: 2}}",
        "spec: {replicas: 2}",
        &["must be at most replicas - 1"],
    ),
    accept_update(
        "spec: {replicas: 3, deletionPolicy: Retain}",
        "spec: {deletionPolicy: Delete, replicas: 1}",
    ),
];
