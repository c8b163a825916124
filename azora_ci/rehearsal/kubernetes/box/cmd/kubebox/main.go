// kubebox is a Kubernetes control plane in one binary: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, each a
// process of its own, so that a test can restart one of them.
package main

import (
	"fmt"
	"net/url"
	"os"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

const usage = "usage: kubebox etcd FOLDER CLIENT_URL PEER_URL | kube-apiserver … | kube-controller-manager … | kube-scheduler …"

func main() {
	if len(os.Args) < 2 {
		fail(2, usage)
	}
	os.Args = os.Args[1:] // each component reads its flags from here
	switch os.Args[0] {
	case "etcd":
		if len(os.Args) != 4 {
			fail(2, usage)
		}
		fail(1, etcd(os.Args[1], os.Args[2], os.Args[3]))
	case "kube-apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kube-controller-manager":
		os.Exit(cli.Run(manager.NewControllerManagerCommand()))
	case "kube-scheduler":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	default:
		fail(2, usage)
	}
}

// etcd serves until it fails, and returns why.
func etcd(folder, client, peer string) error {
	config := embed.NewConfig()
	config.Dir = folder
	config.ListenClientUrls = urls(client)
	config.AdvertiseClientUrls = urls(client)
	config.ListenPeerUrls = urls(peer)
	config.AdvertisePeerUrls = urls(peer)
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.LogLevel = "warn"
	config.UnsafeNoFsync = true // the data is thrown away
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	select {
	case <-server.Server.ReadyNotify():
		return <-server.Err()
	case <-time.After(60 * time.Second):
		return fmt.Errorf("etcd was not ready within 60 s")
	}
}

func urls(address string) []url.URL {
	parsed, err := url.Parse(address)
	if err != nil {
		fail(2, err)
	}
	return []url.URL{*parsed}
}

func fail(code int, why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(code)
}
