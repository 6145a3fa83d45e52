{{- define "mirror.selector" -}}
app.kubernetes.io/name: mirror
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mirror.labels" -}}
{{ include "mirror.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "mirror.cluster.env" -}}
{{- $secrets := "/run/secrets/mirror-cluster" -}}
{{- $peers := printf "dns:%s-peers.%s.svc:5000" .Release.Name .Release.Namespace -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- {name: MIRROR_CLUSTER__ADVERTISE, value: "http://$(POD_IP):5000"}
- {name: MIRROR_CLUSTER__PEERS, value: {{ list $peers | toJson | quote }}}
- {name: MIRROR_CLUSTER__SECRET_FILE, value: {{ $secrets }}/secret}
{{- with .Values.cluster.credentialsKey }}
- {name: MIRROR_CLUSTER__CREDENTIALS_FILE, value: {{ $secrets }}/{{ . }}}
{{- end }}
{{- range $key := list "objects" "endpoint" "region" "state" }}
{{- with get $.Values.cluster $key }}
- {name: MIRROR_CLUSTER__{{ upper $key }}, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "mirror.port" -}}
{{- $url := urlParse . -}}
{{- $usual := dict "http" "80" "https" "443" "redis" "6379" "rediss" "6379" -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (get $usual $url.scheme) -}}
{{- end }}
