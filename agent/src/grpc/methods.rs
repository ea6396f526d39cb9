//! Who may call what, as data: a method that is not in the table does not exist.

use pgwarden_proto::identity::CertRole::{self, Backup, Controller, Peer, Replication, Server, Viewer};
use tonic::Status;

/// One line of the table.
#[derive(Debug)]
pub struct Method {
    /// As in the request's path, without the leading slash.
    pub name: &'static str,
    /// The roles that may call it.
    pub roles: &'static [CertRole],
    /// How many calls may be worked on at once; more are told RESOURCE_EXHAUSTED. Bounds the memory that callers can take.
    pub at_once: usize,
}

const READERS: &[CertRole] = &[Controller, Viewer, Peer, Backup];
/// Everyone who gets in: the server's certificate is none for clients, its bearer fails in the handshake.
const ALL: &[CertRole] = &[Replication, Peer, Controller, Backup, Viewer];

/// The table.
pub const METHODS: &[Method] = &[
    Method { name: "pgwarden.v1.Agent/Status", roles: READERS, at_once: 16 },
    Method { name: "pgwarden.v1.Agent/WatchStatus", roles: READERS, at_once: 16 },
    Method { name: "pgwarden.v1.Agent/Configure", roles: &[Controller], at_once: 2 },
    Method { name: "pgwarden.v1.Peer/Join", roles: &[Peer], at_once: 16 },
    Method { name: "pgwarden.v1.Peer/Heartbeat", roles: &[Peer], at_once: 16 },
    Method { name: "grpc.health.v1.Health/Check", roles: ALL, at_once: 16 },
    Method { name: "grpc.health.v1.Health/Watch", roles: ALL, at_once: 16 },
    Method { name: "grpc.reflection.v1.ServerReflection/ServerReflectionInfo", roles: READERS, at_once: 8 },
    Method {
        name: "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        roles: READERS,
        at_once: 8,
    },
];

/// How many connections a role may hold open: no role can keep another out.
#[must_use]
pub const fn connections(role: Option<CertRole>) -> usize {
    match role {
        Some(Peer) => 24,
        Some(Controller) => 16,
        Some(Viewer) => 10,
        Some(Backup) => 8,
        Some(Server | Replication) | None => 2,
    }
}

/// The place in [`METHODS`] of the method at `path`, when `role` may call it.
pub(super) fn authorise(path: &str, role: CertRole) -> Result<usize, Status> {
    let name = path.strip_prefix('/').unwrap_or(path);
    let found = METHODS.iter().enumerate().find(|(_, method)| method.name == name);
    let (index, method) = found.ok_or_else(|| Status::unimplemented(format!("there is no method {name}")))?;
    if method.roles.contains(&role) {
        return Ok(index);
    }
    let may: Vec<_> = method.roles.iter().map(|role| role.as_str()).collect();
    Err(Status::permission_denied(format!(
        "a certificate of role {role} may not call {name}, only {} may",
        may.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use tonic::Code;

    use super::*;

    #[test]
    fn every_method_of_ours_has_its_roles() {
        let files = FileDescriptorSet::decode(pgwarden_proto::DESCRIPTORS).unwrap();
        let mut defined = Vec::new();
        for file in files.file {
            for service in &file.service {
                for method in &service.method {
                    defined.push(format!("{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        assert!(defined.len() >= 5);
        for name in &defined {
            assert!(METHODS.iter().any(|m| m.name == name), "{name} has no line in the table");
        }
        for method in METHODS.iter().filter(|m| m.name.starts_with("pgwarden.")) {
            assert!(defined.iter().any(|name| name == method.name), "{} does not exist", method.name);
        }
    }

    #[test]
    fn roles_are_kept_apart() {
        let code = |path, role| authorise(path, role).err().map(|status| status.code());
        for (path, role) in [
            ("/pgwarden.v1.Agent/Configure", Viewer),
            ("/pgwarden.v1.Agent/Configure", Peer),
            ("/pgwarden.v1.Agent/Configure", Backup),
            ("/pgwarden.v1.Peer/Join", Controller),
            ("/pgwarden.v1.Peer/Heartbeat", Viewer),
            ("/pgwarden.v1.Agent/Status", Replication),
            ("/pgwarden.v1.Agent/Status", Server),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Replication),
        ] {
            assert_eq!(code(path, role), Some(Code::PermissionDenied), "{role} {path}");
        }
        for role in CertRole::ALL {
            let health = if role == Server { Some(Code::PermissionDenied) } else { None };
            assert_eq!(code("/grpc.health.v1.Health/Check", role), health);
            assert_eq!(code("/pgwarden.v1.Agent/Status/", role), Some(Code::Unimplemented));
            assert_eq!(code("//pgwarden.v1.Agent/Configure", role), Some(Code::Unimplemented));
        }
        let status = authorise("/pgwarden.v1.Agent/Configure", Viewer).unwrap_err();
        assert_eq!(
            status.message(),
            "a certificate of role viewer may not call pgwarden.v1.Agent/Configure, only controller may"
        );
    }

    #[test]
    fn connections_are_bounded() {
        let all = CertRole::ALL.into_iter().map(Some).chain([None]);
        assert_eq!(all.map(connections).sum::<usize>(), 64);
    }
}
