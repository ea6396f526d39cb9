package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"time"
)

// authority signs every certificate of one cluster.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

type identity struct{ cert, key []byte }

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "pgwarden-test-ca"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{key, cert, encode("CERTIFICATE", der)}, err
}

func (a *authority) issue(name, group string, hosts ...string) (identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return identity{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if group != "" {
		template.Subject.Organization = []string{group}
	}
	for _, host := range hosts {
		if address := net.ParseIP(host); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return identity{}, err
	}
	encoded, err := encodeKey(key)
	return identity{encode("CERTIFICATE", der), encoded}, err
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	return encode("EC PRIVATE KEY", der), err
}

func kubeconfig(cluster, server string, ca []byte, id identity) []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: %[1]s, cluster: {server: "%[2]s", certificate-authority-data: %[3]s}}]
users: [{name: %[1]s, user: {client-certificate-data: %[4]s, client-key-data: %[5]s}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[1]s}}]
current-context: %[1]s
`, cluster, server, b64(ca), b64(id.cert), b64(id.key))
}

// makeKeys writes every key, certificate and kubeconfig of the cluster.
func (c *Cluster) makeKeys() error {
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	caKey, err := encodeKey(ca.key)
	if err != nil {
		return err
	}
	tokens, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tokenKey, err := encodeKey(tokens)
	if err != nil {
		return err
	}
	tokenPublic, err := x509.MarshalPKIXPublicKey(&tokens.PublicKey)
	if err != nil {
		return err
	}
	api := c.address(c.apiHost().Last)
	inside := fmt.Sprintf("https://%s:6443", api)
	files := map[string][]byte{
		"pki/ca.crt": ca.pem, "pki/ca.key": caKey, "pki/sa.key": tokenKey, "pki/sa.pub": encode("PUBLIC KEY", tokenPublic),
	}
	servers := []struct {
		file, name, group string
		hosts             []string
	}{
		{"pki/apiserver", "kube-apiserver", "", []string{"127.0.0.1", api, c.serviceIP(1), "localhost",
			"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}},
		{"pki/kubelet-client", "kube-apiserver-kubelet", "system:masters", nil},
	}
	for _, s := range servers {
		id, err := ca.issue(s.name, s.group, s.hosts...)
		if err != nil {
			return err
		}
		files[s.file+".crt"], files[s.file+".key"] = id.cert, id.key
	}
	clients := []struct{ file, server, name, group string }{
		{"kubeconfig", fmt.Sprintf("https://127.0.0.1:%d", c.apiPort()), "admin", "system:masters"},
		{"pki/provisioner.kubeconfig", inside, "provisioner", "system:masters"},
		{"pki/dns.kubeconfig", inside, "dns", "system:masters"},
		{"pki/controller-manager.kubeconfig", inside, "system:kube-controller-manager", ""},
		{"pki/scheduler.kubeconfig", inside, "system:kube-scheduler", ""},
		{"pki/proxy.kubeconfig", inside, "system:kube-proxy", ""},
	}
	for _, client := range clients {
		id, err := ca.issue(client.name, client.group)
		if err != nil {
			return err
		}
		files[client.file] = kubeconfig(c.contextName(), client.server, ca.pem, id)
		if client.file == "kubeconfig" {
			files["pki/admin.crt"], files["pki/admin.key"] = id.cert, id.key
		}
	}
	for _, n := range c.nodes() {
		id, err := ca.issue("system:node:"+n.Name, "system:nodes", n.Name, c.address(n.Last))
		if err != nil {
			return err
		}
		dir := filepath.Join(n.Name, "disk/pki")
		files[dir+"/ca.crt"], files[dir+"/kubelet.crt"], files[dir+"/kubelet.key"] = ca.pem, id.cert, id.key
		files[dir+"/kubelet.kubeconfig"] = kubeconfig(c.contextName(), inside, ca.pem, id)
	}
	for name, content := range files {
		if err := writeFile(c.state(name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) contextName() string { return "pgwarden-" + c.Name }
