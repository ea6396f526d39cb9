package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// api is as much of a Kubernetes client as ctl needs. A real one would make ctl slow to build, and it is built first.
type api struct {
	base   string
	client *http.Client
}

func (c *Cluster) api() (*api, error) {
	pair, err := tls.LoadX509KeyPair(c.state("pki/admin.crt"), c.state("pki/admin.key"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(c.state("pki/ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}}
	return &api{fmt.Sprintf("https://127.0.0.1:%d", c.apiPort()), &http.Client{Transport: transport, Timeout: 5 * time.Second}}, nil
}

func (a *api) do(method, path string, body []byte, into any) (int, error) {
	request, err := http.NewRequest(method, a.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		request.Header.Set("Content-Type", "application/merge-patch+json")
	}
	response, err := a.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return response.StatusCode, err
	}
	if response.StatusCode >= 300 {
		return response.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(data))
	}
	if into != nil {
		err = json.Unmarshal(data, into)
	}
	return response.StatusCode, err
}

func (a *api) ready() bool {
	_, err := a.do("GET", "/readyz", nil, nil)
	return err == nil
}

// create makes an object unless it is there.
func (a *api) create(path, object string) error {
	status, err := a.do("POST", path, []byte(object), nil)
	if status == http.StatusConflict {
		return nil
	}
	return err
}

// nodesReady says of each node that is Ready, and has the size of nodeSize, when it last said so.
func (a *api) nodesReady() (map[string]time.Time, error) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct {
				Allocatable struct{ CPU string }
				Conditions  []struct {
					Type, Status      string
					LastHeartbeatTime time.Time
				}
			}
		}
	}
	if _, err := a.do("GET", "/api/v1/nodes", nil, &list); err != nil {
		return nil, err
	}
	ready := map[string]time.Time{}
	for _, node := range list.Items {
		if node.Status.Allocatable.CPU != nodeCPUs {
			// A kubelet that registered before the policy was in force reports again only after minutes.
			if _, err := a.do(http.MethodPatch, "/api/v1/nodes/"+node.Metadata.Name+"/status", []byte(`{"status": {"phase": ""}}`), nil); err != nil {
				return nil, err
			}
			continue
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == "Ready" && condition.Status == "True" {
				ready[node.Metadata.Name] = condition.LastHeartbeatTime
			}
		}
	}
	return ready, nil
}
