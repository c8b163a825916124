package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/cert"
	"k8s.io/kubelet/pkg/cri/streaming/portforward"
)

const kubeletPort = 10250

// serve starts to answer what the API server asks a kubelet: logs, and the forwarding of a port. The port also keeps the addresses for us.
func (n *node) serve() error {
	certificate, key, err := cert.GenerateSelfSignedCertKey(n.address(), []net.IP{net.ParseIP(n.address())}, nil)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", fmt.Sprintf("%s:%d", n.address(), kubeletPort), &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.showLog)
	mux.HandleFunc("/portForward/{namespace}/{pod}", n.forward)
	server := http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return nil
}

func (n *node) showLog(answer http.ResponseWriter, request *http.Request) {
	file, err := os.Open(filepath.Join(n.logs, filepath.Base(request.PathValue("namespace"))+"_"+filepath.Base(request.PathValue("pod"))+".log"))
	if err != nil {
		http.Error(answer, err.Error(), http.StatusNotFound)
		return
	}
	defer file.Close()
	_, _ = io.Copy(answer, file) // to where it has been written by now; whoever asked may hang up
}

func (n *node) forward(answer http.ResponseWriter, request *http.Request) {
	options, err := portforward.NewV4Options(request)
	if err != nil {
		http.Error(answer, err.Error(), http.StatusBadRequest)
		return
	}
	name := request.PathValue("namespace") + "/" + request.PathValue("pod")
	portforward.ServePortForward(answer, request, n, name, "", options, time.Hour, 10*time.Second, portforward.SupportedProtocols)
}

// PortForward copies between a stream of the API server and a port of a pod.
func (n *node) PortForward(_ context.Context, name string, _ types.UID, port int32, stream io.ReadWriteCloser) error {
	address := n.find(name)
	connection, err := net.Dial("tcp", fmt.Sprintf("%s:%d", address, port))
	if err != nil {
		return err
	}
	defer connection.Close()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(connection, stream)
		if half, ok := connection.(*net.TCPConn); ok {
			_ = half.CloseWrite()
		}
		sent <- err
	}()
	_, received := io.Copy(stream, connection)
	return errors.Join(received, stream.Close())
}

func (n *node) find(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.runners {
		if r.pod.Namespace+"/"+r.pod.Name == name && !r.leaving {
			return r.address
		}
	}
	return ""
}

// gone says whether a pod cannot be reported on any more: it was deleted, or another one has its name.
func gone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err)
}
