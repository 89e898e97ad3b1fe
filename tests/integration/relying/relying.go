// A TLS server that refuses revoked clients: relying ocsp|crl CERTIFICATE KEY ROOTS. It prints its port first.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/crypto/ocsp"
)

var client = http.Client{Timeout: 10 * time.Second}

const limit = 1 << 20

// For tls.Config.VerifyConnection. VerifyPeerCertificate would not be called when a session is resumed.
func refuseRevoked(state tls.ConnectionState) error {
	leaf, issuer := state.VerifiedChains[0][0], state.VerifiedChains[0][1]
	request, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return err
	}
	answer, err := client.Post(leaf.OCSPServer[0], "application/ocsp-request", bytes.NewReader(request))
	if err != nil {
		return err // Nobody knows: refuse.
	}
	defer answer.Body.Close()
	der, err := io.ReadAll(io.LimitReader(answer.Body, limit))
	if err != nil {
		return err
	}
	response, err := ocsp.ParseResponseForCert(der, leaf, issuer)
	if err != nil {
		return err
	}
	if response.Status != ocsp.Good || time.Now().After(response.NextUpdate) {
		return fmt.Errorf("certificate %x is not good", leaf.SerialNumber)
	}
	return nil
}

// The same by the part of the CRL that the certificate names.
func refuseListed(state tls.ConnectionState) error {
	leaf, issuer := state.VerifiedChains[0][0], state.VerifiedChains[0][1]
	answer, err := client.Get(leaf.CRLDistributionPoints[0])
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	der, err := io.ReadAll(io.LimitReader(answer.Body, limit))
	if err != nil {
		return err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return err
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return err
	}
	if time.Now().After(list.NextUpdate) {
		return fmt.Errorf("the CRL is older than %v", list.NextUpdate)
	}
	for _, entry := range list.RevokedCertificates {
		if entry.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return fmt.Errorf("certificate %x is revoked", leaf.SerialNumber)
		}
	}
	return nil
}

func main() {
	checks := map[string]func(tls.ConnectionState) error{"ocsp": refuseRevoked, "crl": refuseListed}
	own, err := tls.LoadX509KeyPair(os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	pem, err := os.ReadFile(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	server := http.Server{
		Handler: http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprintln(answer, "ok") }),
		TLSConfig: &tls.Config{
			Certificates:     []tls.Certificate{own},
			ClientCAs:        roots,
			ClientAuth:       tls.RequireAndVerifyClientCert,
			VerifyConnection: checks[os.Args[1]],
		},
	}
	log.Fatal(server.ServeTLS(listener, "", ""))
}
